//! The inventory recomputed from the plain list of events, as anyone would write it down.

use std::collections::{BTreeMap, BTreeSet};

use weir_schema::{Column, Kind, Text};

use super::{Rows, Told};

/// Cells of one row.
type Row = Vec<Option<String>>;
/// Events of one entity, in order of (time, event_id).
type Of<'a> = Vec<&'a Told>;

/// By key, in order of (time, event_id).
fn grouped<K: Ord>(told: &[Told], key: impl Fn(&Told) -> Option<K>) -> BTreeMap<K, Of<'_>> {
    let mut groups: BTreeMap<K, Of<'_>> = BTreeMap::new();
    let mut ordered: Vec<&Told> = told.iter().collect();
    ordered.sort_by(|a, b| (a.event.time, &a.event_id).cmp(&(b.event.time, &b.event_id)));
    for told in ordered {
        if let Some(key) = key(told) {
            groups.entry(key).or_default().push(told);
        }
    }
    groups
}

fn latest<T: ToString>(of: &Of<'_>, value: impl Fn(&Told) -> Option<T>) -> Option<String> {
    of.iter().filter_map(|told| value(told)).next_back().map(|value| value.to_string())
}

fn first(of: &Of<'_>, keep: impl Fn(&Told) -> bool) -> Option<i64> {
    of.iter().filter(|told| keep(told)).map(|told| told.event.time).min()
}

fn last(of: &Of<'_>, keep: impl Fn(&Told) -> bool) -> Option<i64> {
    of.iter().filter(|told| keep(told)).map(|told| told.event.time).max()
}

fn number<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn truth(value: bool) -> Option<String> {
    Some(if value { "t" } else { "f" }.to_owned())
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn simulated(of: &Of<'_>) -> Option<String> {
    truth(of.iter().any(|told| told.host.simulated))
}

fn events(told: &[Told]) -> Vec<Told> {
    told.iter().filter(|told| told.event.kind != Kind::Sample).cloned().collect()
}

pub const CONTAINERS: &str = "select tenant, region, host, container_id, container_name, image, namespace, pod, workload, app, \
    first_seen::bigint, last_seen::bigint, started::bigint, ended::bigint, simulated, image_digest, labels, privileged from containers";

pub fn containers(told: &[Told]) -> Rows {
    let told = events(told);
    let key = |told: &Told| {
        let id = told.container()?.container_id.as_ref()?;
        Some((told.tenant().to_owned(), told.host.host.to_string(), id.to_string()))
    };
    let row = |((tenant, host, id), of): (&(String, String, String), &Of<'_>)| {
        let known = |value: fn(&weir_schema::Container) -> Option<Text>| latest(of, |told| value(told.container()?));
        let started = |told: &Told| told.event.kind == Kind::ContainerStart;
        let detail = |key: &str| {
            latest(of, |told| {
                matches!(told.event.kind, Kind::ContainerStart | Kind::ContainerUpdate).then_some(())?;
                let json: serde_json::Value = serde_json::from_str(told.event.fields.detail.as_deref()?).ok()?;
                let value = json.get(key)?;
                Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            })
        };
        let stopped = last(of, |told| told.event.kind == Kind::ContainerStop);
        let ended = stopped.filter(|stopped| last(of, started).is_none_or(|started| started <= *stopped));
        vec![
            text(tenant),
            latest(of, |told| Some(told.identity.region.as_str().to_owned())),
            text(host),
            text(id),
            known(|container| container.container_name.clone()),
            known(|container| container.image.clone()),
            known(|container| container.namespace.clone()),
            known(|container| container.pod.clone()),
            known(|container| container.workload.clone()),
            known(|container| container.app.clone()),
            number(first(of, |_| true)),
            number(last(of, |told| told.event.kind != Kind::ContainerUpdate).or_else(|| last(of, |_| true))),
            number(first(of, started)),
            number(ended),
            simulated(of),
            detail("image_digest"),
            detail("labels"),
            detail("privileged").and_then(|value| truth(value == "true")),
        ]
    };
    grouped(&told, key).iter().map(row).collect()
}

pub const PROCESSES: &str = "select tenant, region, host, boot_id, process_id, pid, parent_process_id, container_id, app, exe, comm, \
    args, cmdline, cwd, uid, user_name, login_uid, first_seen::bigint, last_seen::bigint, started::bigint, ended::bigint, exit_code, \
    signal, simulated from processes";

pub fn processes(told: &[Told]) -> Rows {
    grouped(&events(told), Told::process_id).iter().map(|(id, of)| process(id, of)).collect()
}

fn process(id: &str, of: &Of<'_>) -> Row {
    let named = |value: fn(&weir_schema::Process) -> Option<Text>| latest(of, |told| value(told.process()?));
    let numbered = |value: fn(&weir_schema::Process) -> Option<u32>| latest(of, |told| value(told.process()?));
    let exit = |told: &Told| told.event.kind == Kind::Exit;
    let exec = |told: &Told| told.event.kind == Kind::Exec && told.event.fields.result.unwrap_or(0) == 0;
    vec![
        text(of[0].tenant()),
        latest(of, |told| Some(told.identity.region.as_str().to_owned())),
        text(&of[0].host.host),
        text(&of[0].host.boot_id.to_string()),
        text(id),
        numbered(|process| Some(process.pid)),
        latest(of, Told::parent_process_id),
        latest(of, |told| told.container()?.container_id.clone()),
        latest(of, |told| told.container()?.app.clone()),
        named(|process| process.exe.clone()),
        named(|process| process.comm.clone()),
        named(|process| process.args.clone()),
        named(|process| process.cmdline.clone()),
        named(|process| process.cwd.clone()),
        numbered(|process| process.uid),
        named(|process| process.user_name.clone()),
        numbered(|process| process.login_uid),
        number(first(of, |_| true)),
        number(last(of, |_| true)),
        number(first(of, exec)),
        number(last(of, exit)),
        latest(of, |told| told.event.fields.exit_code.filter(|_| exit(told))),
        latest(of, |told| told.event.fields.signal.filter(|_| exit(told))),
        simulated(of),
    ]
}

pub const APPS: &str =
    "select tenant, app, first_seen::bigint, last_seen::bigint, hosts, containers, processes, events from apps";

pub fn apps(told: &[Told]) -> Rows {
    let told = events(told);
    let key = |told: &Told| Some((told.tenant().to_owned(), told.container()?.app.as_ref()?.to_string()));
    let row = |((tenant, app), of): (&(String, String), &Of<'_>)| {
        let distinct = |value: &dyn Fn(&Told) -> Option<String>| {
            number(Some(of.iter().filter_map(|told| value(told)).collect::<BTreeSet<_>>().len()))
        };
        vec![
            text(tenant),
            text(app),
            number(first(of, |_| true)),
            number(last(of, |_| true)),
            distinct(&|told| Some(told.host.host.to_string())),
            distinct(&|told| told.container()?.container_id.as_ref().map(ToString::to_string)),
            distinct(&|told| told.process_id()),
            number(Some(of.len())),
        ]
    };
    grouped(&told, key).iter().map(row).collect()
}

pub const HOSTS: &str = "select tenant, cloud, region, zone, host, boot_id, addresses, simulated, first_seen::bigint, \
    last_seen::bigint, ended::bigint from hosts";

/// As the workers do it: only what came in time, samples too.
pub fn hosts(told: &[Told]) -> Rows {
    let in_time: Vec<Told> = told.iter().filter(|told| !told.late).cloned().collect();
    let key = |told: &Told| Some((told.tenant().to_owned(), told.host.host.to_string()));
    let row = |((tenant, host), of): (&(String, String), &Of<'_>)| {
        let word = of.iter().max_by_key(|told| {
            let host = &told.host;
            (told.event.time, host.boot_id, told.identity.region.clone(), host.cloud.clone(), host.zone.clone(), host.simulated)
        });
        let word = word.unwrap();
        let last_time = word.event.time;
        let stopped = last(of, |told| told.event.kind == Kind::HostStop);
        vec![
            text(tenant),
            number(word.host.cloud.as_deref()),
            text(word.identity.region.as_str()),
            number(word.host.zone.as_deref()),
            text(host),
            text(&word.host.boot_id.to_string().replace('-', "")),
            latest(of, |told| told.event.fields.addresses.clone()),
            truth(word.host.simulated),
            number(first(of, |_| true)),
            number(Some(last_time - last_time.rem_euclid(1_000_000_000))),
            number(stopped.filter(|stopped| *stopped >= last_time)),
        ]
    };
    grouped(&in_time, key).iter().map(row).collect()
}

/// Columns that `tree` recomputes.
pub const TREE: &str = "select depth, process_id, pid, tenant, region, host, exe, cmdline, first_seen::bigint from process_tree";

/// The tree of a process: at most so many levels each way.
pub fn tree(told: &[Told], root: &str, levels_max: i64) -> Rows {
    let told = events(told);
    let processes = grouped(&told, Told::process_id);
    let mut found = vec![(0, root.to_owned())];
    for up in [true, false] {
        let (mut met, mut level) = (BTreeSet::from([root.to_owned()]), vec![root.to_owned()]);
        for distance in 1..=levels_max {
            let kin = told.iter().filter_map(|told| {
                let (child, parent) = (told.process_id()?, told.parent_process_id()?);
                let (from, to) = if up { (child, parent) } else { (parent, child) };
                level.contains(&from).then_some(to)
            });
            let next: BTreeSet<String> = kin.filter(|id| !met.contains(id)).collect();
            met.extend(next.iter().cloned());
            found.extend(next.iter().map(|id| (if up { -distance } else { distance }, id.clone())));
            level = next.into_iter().collect();
        }
    }
    let mut rows = Vec::new();
    for (depth, id) in &found {
        let (order, cells) = match processes.get(id) {
            Some(of) => {
                let row = process(id, of);
                (first(of, |_| true).unwrap(), [5, 0, 1, 2, 9, 12, 17].map(|place: usize| row[place].clone()))
            }
            None => {
                let said = |told: &Told| {
                    let child = told.process_id().filter(|child| found.iter().any(|(_, id)| id == child))?;
                    told.parent_process_id().filter(|parent| parent == id).map(|_| child)
                };
                let groups = grouped(&told, |told| said(told).map(drop));
                let Some(of) = groups.get(&()) else { continue };
                let known = |column: Column| {
                    latest(of, |told| {
                        let process = told.process()?;
                        match column {
                            Column::Exe => process.parent_exe.clone(),
                            _ => process.parent_cmdline.clone(),
                        }
                    })
                };
                let pid = latest(of, |told| told.process()?.ppid);
                let region = latest(of, |told| Some(told.identity.region.as_str().to_owned()));
                let place = [text(of[0].tenant()), region, text(&of[0].host.host)];
                let [tenant, region, host] = place;
                (i64::MAX, [pid, tenant, region, host, known(Column::Exe), known(Column::Cmdline), None])
            }
        };
        let row = [Some(depth.to_string()), Some(id.clone())].into_iter().chain(cells).collect::<Row>();
        rows.push(((*depth, order, id.clone()), row));
    }
    rows.sort();
    rows.into_iter().map(|(_, row)| row).collect()
}
