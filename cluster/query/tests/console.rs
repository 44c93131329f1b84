//! The console: what it is served with, what its paths refuse, and a browser that clicks through it.

#![allow(clippy::unwrap_used)]

mod browser;
#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use browser::Browser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weir_config::QueryLimits;
use weir_dataflow::{EngineOptions, run};
use weir_query::{Running, ServeOptions, serve};
use world::World;

struct Node {
    world: World,
    running: Running,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Told {
    status: u16,
    head: String,
    body: String,
}

impl Told {
    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.body))
    }
}

impl Node {
    async fn start(name: &str, limits: QueryLimits) -> Self {
        let world = World::new(23, 50);
        let dir = std::env::temp_dir().join(format!("weir-console-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let options = EngineOptions::alone(2, socket.clone());
        let feeds = world.feeds(2);
        std::thread::spawn(move || run(options, feeds));
        let any = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            node: "n1".into(),
            sql: any,
            http: any,
            socket,
            limits,
            access: Default::default(),
            record: None,
            views: None,
            sinks: None,
        };
        let running = serve(options, Arc::new(String::new)).await.unwrap();
        let node = Self { world, running, dir };
        while node.sql("show weir.tick").await.json()["rows"] != json!([[node.world.end()]]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }

    async fn raw(&self, request: &str) -> Told {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Told { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    async fn get(&self, path: &str, headers: &str) -> Told {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}connection: close\r\n\r\n")).await
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> Told {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\nconnection: close");
        self.raw(&format!("{head}\r\n\r\n{body}")).await
    }

    async fn sql(&self, sql: &str) -> Told {
        self.post("/v1/sql", JSON, &json!({ "sql": sql, "rows_shown_max": 2 }).to_string()).await
    }
}

const JSON: &str = "content-type: application/json\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_with_their_types_a_policy_and_a_tag() {
    let node = Node::start("files", QueryLimits::default()).await;
    let page = node.get("/", "").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let links = page.body.split(['"', '\'']).filter(|word| word.starts_with("/console/")).map(str::to_owned);
    let mut paths: Vec<String> = links.chain(["/".to_owned()]).collect();
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        let file = node.get(&path, "").await;
        assert_eq!(file.status, 200, "{path}");
        let expected = match path.rsplit_once('.').map(|(_, ending)| ending) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(file.header("content-type"), expected, "{path}");
        let policy = file.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(policy.contains("script-src 'self';") && policy.contains("require-trusted-types-for 'script'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        assert_eq!(file.header("set-cookie"), "");
        // Nothing from elsewhere, no markup out of text, nothing inline.
        let foreign = file.body.replace("http://www.w3.org/2000/svg", "");
        for never in [
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            "onclick=",
        ] {
            assert!(!foreign.contains(never), "{path} has {never}");
        }
        // A browser that has it is told so.
        assert_eq!(file.header("cache-control"), "no-cache");
        let again = node.get(&path, &format!("if-none-match: {}\r\n", file.header("etag"))).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        let folder = |name: &str| format!("/console/{name}");
        paths.extend(file.body.split(['"']).filter_map(|word| word.strip_prefix("./")).map(folder).filter(|_| seen < 20));
        seen += 1;
    }
    assert!(seen > 8, "{seen} files");
    assert_eq!(node.get("/console/", "").await.status, 404);
    assert_eq!(node.get("/console/../Cargo.toml", "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_posted_and_limited() {
    let node = Node::start("post", QueryLimits { connections_max: 8, ..QueryLimits::default() }).await;
    let told = node.sql("select host from hosts order by host").await;
    assert_eq!((told.status, told.header("cache-control")), (200, "no-store"));
    let answer = told.json();
    assert_eq!((&answer["rows"], &answer["rows_total"]), (&json!([["host-0"], ["host-1"]]), &json!(6)));
    assert_eq!((&answer["tick"], &answer["completeness"]["lost_events"]), (&json!(node.world.end()), &json!(0)));
    assert_eq!(answer["columns"], json!([{ "name": "host", "type": "text" }]));
    // All panels can be asked at one tick.
    let sql = format!("select count(*) from connections as of {}", node.world.end());
    assert_eq!(node.sql(&sql).await.json()["rows"], json!([[node.world.begun]]));

    for (sql, status, sqlstate, position) in [
        ("selec 1", 400, "42601", json!({ "line": 1, "column": 1 })),
        ("select 1\nfrom hosts\nwhere )", 400, "42601", json!({ "line": 3, "column": 7 })),
        ("select * from nowhere", 404, "42P01", Value::Null),
        ("select nothing from hosts", 400, "42703", Value::Null),
        ("select 1/0", 400, "22012", Value::Null),
        ("select 1; select 2", 400, "0A000", Value::Null),
        ("drop table x", 400, "0A000", Value::Null),
        ("create table x (a int)", 400, "0A000", Value::Null),
        ("insert into hosts (host) values ('x')", 400, "0A000", Value::Null),
        ("subscribe hosts", 400, "0A000", Value::Null),
        ("begin", 400, "0A000", Value::Null),
        ("", 400, "0A000", Value::Null),
    ] {
        let told = node.sql(sql).await;
        let body = told.json();
        assert_eq!((told.status, &body["sqlstate"], &body["position"]), (status, &json!(sqlstate), &position), "{sql}: {body}");
    }
    for (headers, body, status) in [
        ("", "{\"sql\":\"select 1\"}".to_owned(), 415),
        ("content-type: text/plain\r\n", "{\"sql\":\"select 1\"}".to_owned(), 415),
        ("content-type: application/x-www-form-urlencoded\r\n", "sql=select+1".to_owned(), 415),
        (JSON, "select 1".to_owned(), 400),
        (JSON, "{\"sql\":\"select 1\",\"as\":\"admin\"}".to_owned(), 400),
        (JSON, "{\"sql\":\"\\ud800\"}".to_owned(), 400),
        (JSON, json!({ "sql": "x".repeat(1 << 20) }).to_string(), 413),
    ] {
        let told = node.post("/v1/sql", headers, &body).await;
        assert!(told.status == status && told.json()["hint"].is_string(), "{headers}: {} {}", told.status, told.body);
    }
    // A GET changes nothing, and does not begin a subscription.
    assert_eq!(node.get("/v1/sql?sql=select%201", "").await.status, 405);
    assert_eq!(node.get("/v1/subscribe?sql=subscribe%20hosts", "").await.status, 405);

    // Questions at once are limited: one whose body does not come holds a place once its body is waited for, which the server says.
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(node.running.http_addr()).await.unwrap();
        let head = format!("POST /v1/sql HTTP/1.1\r\nhost: localhost\r\n{JSON}expect: 100-continue\r\ncontent-length: 9\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut waited = [0; 12];
        stream.read_exact(&mut waited).await.unwrap();
        assert_eq!(&waited, b"HTTP/1.1 100");
        held.push(stream);
    }
    let told = node.sql("select 1").await;
    assert_eq!((told.status, &told.json()["sqlstate"]), (503, &json!("53300")));
    drop(held);
    while node.sql("select 1").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_others_are_refused() {
    let node = Node::start("origin", QueryLimits::default()).await;
    let own = format!("origin: http://localhost\r\nsec-fetch-site: same-origin\r\n{JSON}");
    let body = "{\"sql\":\"select 1\"}";
    assert_eq!(node.post("/v1/sql", &own, body).await.status, 200);
    for headers in
        ["origin: http://evil.example\r\n", "origin: null\r\n", "sec-fetch-site: cross-site\r\n", "sec-fetch-site: same-site\r\n"]
    {
        let told = node.post("/v1/sql", &format!("{headers}{JSON}"), body).await;
        assert!(told.status == 403 && told.body.contains("may not ask here"), "{headers}: {}", told.body);
        assert_eq!(node.get("/v1/query?sql=select%201", headers).await.status, 403, "{headers}");
    }
    // A name that some site made point here.
    let told = node.raw("GET /v1/views HTTP/1.1\r\nhost: evil.example:7480\r\nconnection: close\r\n\r\n").await;
    assert!(told.status == 403 && told.body.contains("evil.example"), "{}", told.body);
    let link = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n";
    assert_eq!(node.get("/", link).await.status, 200);
    // No answer may be read by a page of another origin.
    let preflight = "access-control-request-method: POST\r\n";
    let told = node.raw(&format!("OPTIONS /v1/sql HTTP/1.1\r\nhost: localhost\r\n{preflight}connection: close\r\n\r\n")).await;
    assert!(told.status == 405 && !told.head.to_lowercase().contains("access-control-allow"), "{}", told.head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_told_as_events() {
    let node = Node::start("events", QueryLimits { subscriptions_max: 1, ..QueryLimits::default() }).await;
    let body = json!({ "sql": "subscribe region_connections with (progress)" }).to_string();
    let head = format!("POST /v1/subscribe HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(node.running.http_addr()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = String::new();
    let mut piece = [0; 4096];
    while !told.contains("event: changes") || !told.ends_with("\r\n") {
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "{told}");
        told.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    assert!(told.contains("content-type: text/event-stream") && told.contains("weir_progressed"), "{told}");
    assert!(told.contains(&format!("\"tick\":{}", node.world.end())), "{told}");
    // The next one is one too many, until this one has gone.
    let refused = node.post("/v1/subscribe", JSON, &body).await;
    assert!(refused.status == 503 && refused.json()["sqlstate"] == "53300", "{}", refused.body);
    drop(stream);
    let ends = format!("subscribe hosts up to {}", node.world.end() + 1);
    let body = json!({ "sql": ends }).to_string();
    let mut told = node.post("/v1/subscribe", JSON, &body).await;
    for _ in 0..600 {
        if told.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        told = node.post("/v1/subscribe", JSON, &body).await;
    }
    assert!(told.status == 200 && told.body.contains("host-5"), "{} {}", told.status, told.body);
    for sql in ["select 1", "subscribe nowhere", "subscribe events"] {
        assert_ne!(node.post("/v1/subscribe", JSON, &json!({ "sql": sql }).to_string()).await.status, 200, "{sql}");
    }
}

/// What a process may be called; in every text of every answer.
const HOSTILE: &str = "</td><img src=x onerror=\"window.taken=1\"><script>window.taken=2</script>'; drop table x --";

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_browser_clicks_through_it() {
    let node = Node::start("browser", QueryLimits::default()).await;
    let url = format!("http://127.0.0.1:{}/", node.running.http_addr().port());
    let (dir, begun) = (node.dir.clone(), node.world.begun);
    let tick = node.world.end();
    tokio::task::spawn_blocking(move || {
        let Some(mut page) = Browser::start(&dir) else { return };
        page.open(&url);
        click_through(&mut page, begun, tick);
        hostile_text_stays_text(&mut page, &url);
        assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
    })
    .await
    .unwrap();
}

fn click_through(page: &mut Browser, begun: usize, tick: u64) {
    // Every panel has rows or says that there are none.
    page.until(
        "document.querySelectorAll('#map-body .node').length >= 2 && document.querySelectorAll('#map-body .arc').length >= 1",
    );
    for panel in ["services", "talkers", "utilization", "agents", "freshness"] {
        page.until(&format!("document.querySelectorAll('#{panel}-body tbody tr').length > 0"));
    }
    for panel in ["alerts", "losses"] {
        page.until(&format!("document.querySelector('#{panel}-body').innerText.length > 3"));
    }
    assert_eq!(page.value("document.querySelectorAll('.trouble:not([hidden])').length"), 0);
    assert_eq!(page.value("document.querySelector('#tick').title"), tick.to_string());
    // The scripted fleet is over, so its last tick grows old, and the page says so.
    page.until("document.querySelector('#verdict').dataset.state === 'bad' && document.querySelector('#verdict').innerText.startsWith('stale')");

    // A region filters the services, by mouse and by key; Escape takes it back.
    page.click("#map-body .node circle");
    page.until(
        "!document.querySelector('#unfilter').hidden && document.querySelector('#filter').innerText.startsWith('from or to')",
    );
    page.until("document.querySelectorAll('#services-body tbody tr').length > 0");
    assert_eq!(page.value("document.querySelectorAll('#map-body .node[aria-pressed=true]').length"), 1);
    page.press("Escape", 27, 0);
    page.until("document.querySelector('#filter').innerText === 'all regions'");
    page.value("document.querySelector('#map-body .arc').focus()");
    page.press("Enter", 13, 0);
    page.until("document.querySelector('#filter').innerText.includes('→')");
    assert_eq!(page.value("document.querySelector('#services-body .trouble')"), Value::Null);
    page.click("#unfilter");
    page.until("document.querySelector('#unfilter').hidden");

    // The editor: rows, an error with its place, history, a subscription, and an end of it.
    let ask = |page: &mut Browser, sql: &str| {
        page.value("(() => { const box = document.querySelector('#statement'); box.focus(); box.select(); })()");
        page.write(sql);
        page.press("Enter", 13, 2);
    };
    ask(page, "select count(*) as n, 9223372036854775807 as big from connections");
    page.until(&format!("document.querySelector('#answer').innerText.includes('{begun}')"));
    assert_eq!(page.value("document.querySelector('#answer tbody td:last-child').innerText"), "9223372036854775807");
    ask(page, "select 1\nfrom hosts where )");
    page.until("document.querySelector('#answer-trouble').innerText.includes('42601')");
    assert_eq!(page.value("document.querySelector('#answer-trouble .position').innerText"), "line 2, column 18");
    ask(page, "select nothing from hosts");
    page.until("document.querySelector('#answer-trouble').innerText.includes('42703')");
    assert_eq!(page.value("document.querySelector('#answer-trouble').innerText.includes('columns are')"), true);
    page.press("ArrowUp", 38, 1);
    assert_eq!(page.value("document.querySelector('#statement').value"), "select 1\nfrom hosts where )");
    assert_eq!(page.value("JSON.parse(localStorage.getItem('weir.history')).length"), 3);
    ask(page, "subscribe region_connections");
    page.until("document.querySelector('#answer-status').innerText.includes('subscribed')");
    page.until("document.querySelectorAll('#answer tbody tr').length > 1");
    page.click("#stop");
    page.until("document.querySelector('#answer-status').innerText === 'stopped'");
    page.value("document.querySelector('#live').checked = true");
    ask(page, "select 1 as one");
    page.until("document.querySelector('#answer-status').innerText.endsWith('live')");
    page.value("document.querySelector('#live').click()");
    page.until("document.querySelector('#stop').disabled");

    // Everything that takes input has a name; nothing is wider than a narrow window.
    let unnamed = "[...document.querySelectorAll('button, select, textarea, input, [role=region], [role=button]')].filter(\
         (element) => !(element.innerText || element.labels?.length || element.getAttribute('aria-label'))).length";
    assert_eq!(page.value(unnamed), 0);
    page.call(
        "Emulation.setDeviceMetricsOverride",
        json!({ "width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": false }),
    );
    page.until("document.documentElement.scrollWidth <= 360");
    page.call("Emulation.clearDeviceMetricsOverride", json!({}));
    for scheme in ["dark", "light"] {
        page.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }));
        let back = page.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]").as_u64().unwrap();
        assert_eq!(back > 128, scheme == "light", "{scheme}: {back}");
    }
}

/// Every text that the server answers is replaced by markup: no element may come of it, and no script may run.
fn hostile_text_stays_text(page: &mut Browser, url: &str) {
    let replace = format!(
        "const real = window.fetch; window.fetch = async (path, options) => {{\
           const response = await real(path, options);\
           if (path !== '/v1/sql') return response;\
           const told = await response.json();\
           const hostile = (value) => (typeof value === 'string' && !/^\\d{{4}}-/.test(value) ? {HOSTILE:?} : value);\
           told.rows = told.rows?.map((row) => row.map(hostile));\
           told.note = {HOSTILE:?};\
           return new Response(JSON.stringify(told), {{ status: response.status }}); }};"
    );
    page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": replace }));
    page.open(url);
    page.until("document.querySelector('#agents-body')?.innerText.includes('<img src=x')");
    page.until("document.querySelector('#map-body .node text:last-child')?.textContent.includes('<script>')");
    page.click("#map-body .node circle");
    page.until("document.querySelector('#filter').innerText.includes('<img')");
    page.value("document.querySelector('#statement').value = \"select '<b>x' as \\\"<i>name\\\" from hosts\"");
    // The panels above it grow meanwhile: a place on the screen may be another one a moment later.
    page.value("document.querySelector('#run').click()");
    page.until("document.querySelector('#answer td')?.innerText.includes('<img')");
    assert_eq!(page.value("document.querySelector('#answer th').innerText"), "<i>name");
    page.until("document.querySelector('#answer-status').innerText.includes('<script>')");
    // An error repeats what was asked.
    page.value("document.querySelector('#statement').value = 'select \"<img src=x onerror=alert(1)>\" from hosts'");
    page.value("document.querySelector('#run').click()");
    page.until("document.querySelector('#answer-trouble').innerText.includes('<img')");
    std::thread::sleep(Duration::from_millis(300));
    let made = "document.querySelectorAll('img, main script, iframe, i, b').length";
    assert_eq!((page.value(made), page.value("window.taken ?? 0")), (json!(0), json!(0)));
    // And where markup is tried by hand, the policy stands in the way.
    let tried = "(() => { try { document.body.innerHTML = '<p>'; return 'done'; } catch (error) { return error.name; } })()";
    assert_eq!(page.value(tried), "TypeError");
    page.complaints.retain(|told| !told.contains("TrustedHTML"));
}
