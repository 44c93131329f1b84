//! What each app of the fleet does all day: it serves a port, opens its own files, and is asked by the container runtime how it is.
//!
//! Promise: nothing here is what an intruder does. Servers start no shells, accounts are read and not written.

/// One app.
#[derive(Debug)]
pub(super) struct Habits {
    pub(super) app: &'static str,
    pub(super) image: &'static str,
    pub(super) exe: &'static str,
    /// The port it serves.
    pub(super) port: u16,
    pub(super) uid: u32,
    pub(super) tools: &'static [Tool],
    /// Path, and flags of `open`.
    pub(super) files: &'static [(&'static str, u32)],
}

/// A program that runs for a moment.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) exe: &'static str,
    pub(super) cmdline: &'static str,
    /// Who starts it; none: the app.
    pub(super) parent: Option<&'static str>,
}

const READ: u32 = 0o100_000;
const WRITE: u32 = 0o100_001;
/// For writing, made if it is not there, at its end.
const APPEND: u32 = 0o102_101;

/// A probe, which the container runtime starts.
const fn probe(exe: &'static str, cmdline: &'static str) -> Tool {
    Tool { exe, cmdline, parent: Some("/usr/bin/containerd-shim-runc-v2") }
}

/// A program that the app itself starts.
const fn own(exe: &'static str, cmdline: &'static str) -> Tool {
    Tool { exe, cmdline, parent: None }
}

const SERVICE_TOOLS: &[Tool] = &[probe("/usr/local/bin/grpc_health_probe", "grpc_health_probe -addr=127.0.0.1:8080")];

/// A service that keeps nothing on its disk.
const SERVICE_FILES: &[(&str, u32)] = &[
    ("/etc/hosts", READ),
    ("/etc/passwd", READ),
    ("/etc/ssl/certs/ca.pem", READ),
    ("/app/config.toml", READ),
    ("/tmp/upload.part", WRITE),
    ("/var/log/app.log", APPEND),
];

/// One that does.
const STORE_FILES: &[(&str, u32)] =
    &[("/data/segment.0", WRITE), ("/data/segment.1", READ), ("/etc/hosts", READ), ("/var/log/app.log", APPEND)];

pub(super) static APPS: [Habits; 10] = [
    Habits {
        app: "frontend",
        image: "registry.example/frontend:4.2",
        exe: "/usr/sbin/nginx",
        port: 443,
        // Its image was never made to run as somebody else.
        uid: 0,
        tools: SERVICE_TOOLS,
        files: &[
            ("/etc/nginx/mime.types", READ),
            ("/usr/share/nginx/html/index.html", READ),
            ("/etc/ssl/certs/ca.pem", READ),
            ("/var/cache/nginx/client_temp/0001", WRITE),
            ("/var/log/nginx/access.log", APPEND),
        ],
    },
    service("api", "registry.example/api:1.18", "/app/api", 8080),
    service("auth", "registry.example/auth:2.0", "/app/auth", 8443),
    service("payments", "registry.example/payments:7.1", "/app/payments", 9000),
    Habits { files: STORE_FILES, ..service("ledger", "registry.example/ledger:3.3", "/usr/bin/java", 9100) },
    Habits { files: STORE_FILES, ..service("search", "registry.example/search:0.9", "/app/search", 9200) },
    Habits {
        tools: &[probe("/usr/lib/postgresql/16/bin/pg_isready", "pg_isready -q")],
        files: &[
            ("/var/lib/postgresql/data/base/16384/2619", WRITE),
            ("/var/lib/postgresql/data/global/pg_filenode.map", READ),
            ("/var/lib/postgresql/data/pg_wal/000000010000000000000001", WRITE),
        ],
        ..service("postgres", "registry.example/postgres:16", "/usr/lib/postgresql/16/bin/postgres", 5432)
    },
    Habits {
        tools: &[probe("/usr/bin/redis-cli", "redis-cli ping")],
        files: &[("/data/appendonly.aof", APPEND), ("/data/dump.rdb", WRITE)],
        ..service("cache", "registry.example/cache:7", "/usr/bin/redis-server", 6379)
    },
    Habits { files: STORE_FILES, ..service("queue", "registry.example/queue:3", "/opt/queue/bin/server", 9092) },
    Habits {
        tools: &[
            own("/bin/sh", "sh -c cc -O2 -c main.c"),
            own("/usr/bin/cc", "cc -O2 -c main.c"),
            own("/usr/bin/ar", "ar rcs lib.a main.o"),
        ],
        files: &[("/src/main.c", READ), ("/usr/include/stdio.h", READ), ("/tmp/cc0001.s", WRITE), ("/src/main.o", WRITE)],
        ..service("build", "registry.example/build:11", "/usr/bin/make", 8000)
    },
];

/// What most of them are.
const fn service(app: &'static str, image: &'static str, exe: &'static str, port: u16) -> Habits {
    Habits { app, image, exe, port, uid: 1000, tools: SERVICE_TOOLS, files: SERVICE_FILES }
}
