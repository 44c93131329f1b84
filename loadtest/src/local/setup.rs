//! What a local cluster needs before anything runs: certificates, free ports, config files.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use weir_config::{CHAIN_FILES, DemoConfig, RULE_FILES, TcpListen};
use weir_schema::Name;
use weir_transport::ca;

/// The one tenant of a local cluster.
pub const TENANT: &str = "demo";
/// The region of this real host, beside the fleet's six.
const REGION: &str = "local";

/// Files of a local cluster.
pub struct Setup {
    dir: PathBuf,
    /// The certificate authority's directory.
    pub authority: PathBuf,
    /// One config per node.
    pub node_configs: Vec<PathBuf>,
    /// Ports that were taken, in words.
    pub taken: Vec<String>,
}

impl Setup {
    /// Writes certificates and node configs below `dir`.
    pub fn write(config: &DemoConfig, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("could not use {}", dir.display()))?;
        let mut setup = Self { authority: dir.join("ca"), dir, node_configs: Vec::new(), taken: Vec::new() };
        if !setup.authority.join("ca.pem").exists() {
            ca::init(&setup.authority, "demo.weir.local")?;
        }
        setup.agent_certificate()?;
        for index in 0..config.nodes {
            let path = setup.write_node_config(config, index)?;
            setup.node_configs.push(path);
        }
        Ok(setup)
    }

    /// Writes the rules that ship, and names them in the config of every node.
    pub fn add_rules(&self) -> anyhow::Result<()> {
        let folder = self.dir.join("rules");
        for (folder, files) in [(folder.clone(), RULE_FILES), (folder.join("chains"), CHAIN_FILES)] {
            std::fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
            for (name, text) in files {
                let written = std::fs::write(folder.join(name), text);
                written.with_context(|| format!("could not write {name} in {}", folder.display()))?;
            }
        }
        for path in &self.node_configs {
            let mut text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
            writeln!(text, "[rules]\npaths = [{folder:?}]")?;
            std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }

    /// What all nodes share.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Where the processes' logs go.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    fn write_node_config(&mut self, config: &DemoConfig, index: usize) -> anyhow::Result<PathBuf> {
        let id = format!("node-{}", index + 1);
        let tls = self.dir.join("certs").join(&id);
        if !tls.join("cert.pem").exists() {
            ca::issue_node(&self.authority, &Name::new(&id)?, &tls)?;
        }
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (quic, sql, http) = match index {
            0 => (
                self.agents(config.listen.quic, config.listen.tcp),
                self.tcp(config.listen.sql, "SQL"),
                self.tcp(config.listen.http, "HTTP"),
            ),
            _ => (any, any, any),
        };
        let mut text = format!("# Written for a local cluster.\nid = {id:?}\n");
        writeln!(text, "data_dir = {:?}\nshared_dir = {:?}", self.dir.join(&id), self.dir.join("shared"))?;
        writeln!(text, "workers = {}", config.workers)?;
        writeln!(text, "[listen]\nquic = \"{quic}\"\nsql = \"{sql}\"\nhttp = \"{http}\"\nmesh = \"{any}\"")?;
        match config.listen.tcp {
            TcpListen::At(tcp) if index == 0 => writeln!(text, "tcp = \"{tcp}\"")?,
            TcpListen::Off => writeln!(text, "tcp = \"off\"")?,
            TcpListen::At(_) | TcpListen::SameAsQuic => {}
        }
        write_tls(&mut text, &tls)?;
        self.write_file(&format!("{id}.toml"), &text)
    }

    fn agent_certificate(&self) -> anyhow::Result<()> {
        let out = self.dir.join("certs").join("agent");
        if !out.join("cert.pem").exists() {
            let host = Name::new(host_name())?;
            ca::issue_agent(&self.authority, &Name::new(TENANT)?, &Name::new(REGION)?, &host, &out)?;
        }
        Ok(())
    }

    /// Writes the config of this host's agent, which knows all nodes.
    pub fn write_agent_config(&self, config: &DemoConfig, nodes: &[SocketAddr]) -> anyhow::Result<PathBuf> {
        let nodes: Vec<String> = nodes.iter().map(|address| format!("{:?}", address.to_string())).collect();
        let mut text = format!("# Written for a local cluster.\nnodes = [{}]\ncloud = \"onprem\"\n", nodes.join(", "));
        writeln!(text, "data_dir = {:?}", self.dir.join("agent"))?;
        write_tls(&mut text, &self.dir.join("certs").join("agent"))?;
        writeln!(text, "[collector]\nebpf = {}", config.ebpf)?;
        self.write_file("agent.toml", &text)
    }

    fn write_file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    fn tcp(&mut self, wanted: SocketAddr, what: &str) -> SocketAddr {
        self.or_free(wanted, what, TcpListener::bind(wanted).is_ok())
    }

    /// Agents come by UDP, and by TCP at the same number.
    fn agents(&mut self, wanted: SocketAddr, tcp: TcpListen) -> SocketAddr {
        let both = UdpSocket::bind(wanted).is_ok() && (tcp != TcpListen::SameAsQuic || TcpListener::bind(wanted).is_ok());
        self.or_free(wanted, "agents", both)
    }

    fn or_free(&mut self, wanted: SocketAddr, what: &str, is_free: bool) -> SocketAddr {
        if is_free {
            return wanted;
        }
        self.taken.push(format!("port {} for {what} is taken: a free one is used instead", wanted.port()));
        SocketAddr::from((wanted.ip(), 0))
    }
}

fn write_tls(text: &mut String, dir: &Path) -> std::fmt::Result {
    writeln!(text, "[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}", dir.join("ca.pem"), dir.join("cert.pem"), dir.join("key.pem"))
}

/// This host's name, in the characters that identities allow.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain: String =
        name.trim().chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    if plain.is_empty() { "this-host".to_owned() } else { plain }
}

/// True when the effective user is root.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)).is_some_and(|effective| effective == "0")
}
