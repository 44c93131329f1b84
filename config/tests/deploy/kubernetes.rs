//! The manifests against each other, the systemd units and our own config: ports, rights, names.

use std::collections::BTreeSet;
use std::path::Path;

use weir_config::{AgentConfig, CloudProvider, LogLevel, NodeConfig, TcpListen};

use super::yaml::{Yaml, documents};
use super::{read, service, unit};

pub(crate) const OVERLAYS: [&str; 4] = ["aws", "gcp", "azure", "on-prem"];

/// Every object of the base, in the files that its kustomization names.
fn base() -> Vec<Yaml> {
    let kustomization = one("kubernetes/base/kustomization.yaml");
    let files = kustomization.texts("resources");
    assert_eq!(files.len(), 6, "a file that nobody names is not applied");
    files.iter().flat_map(|file| documents(file, &read(&format!("kubernetes/base/{file}")))).collect()
}

fn one(file: &str) -> Yaml {
    let mut all = documents(file, &read(file));
    assert_eq!(all.len(), 1, "{file}");
    all.remove(0)
}

fn object(kind: &str, name: &str) -> Yaml {
    let is_it = |object: &Yaml| object.text("kind") == kind && object.text("metadata.name") == name;
    base().into_iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn pod(kind: &str, name: &str) -> Yaml {
    object(kind, name).at("spec.template.spec").expect("it has pods").clone()
}

fn stateful_set() -> Yaml {
    pod("StatefulSet", "weir")
}

fn daemon_set() -> Yaml {
    pod("DaemonSet", "weir-agent")
}

/// The container's environment as the first pod has it: fields of the pod, then `$(NAME)` of what stands before.
fn environment(container: &Yaml, more: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let own = container.list("env").iter().map(|variable| {
        let value = match variable.text("valueFrom.fieldRef.fieldPath") {
            "" => variable.text("value"),
            "metadata.name" => "weir-0",
            "status.podIP" => "10.0.0.7",
            "spec.nodeName" => "ip-10-0-0-1.example.internal",
            other => panic!("the field {other}"),
        };
        (variable.text("name").to_owned(), value.to_owned())
    });
    for (name, value) in own.chain(more) {
        let value = variables.iter().fold(value, |value, (before, text)| value.replace(&format!("$({before})"), text));
        variables.push((name, value));
    }
    variables
}

/// What an overlay adds to the environment of the pods of this kind.
fn added(overlay: &str, kind: &str) -> Vec<(String, String)> {
    let kustomization = one(&format!("kubernetes/overlays/{overlay}/kustomization.yaml"));
    let patches = kustomization.list("patches").iter().filter(|patch| patch.text("target.kind") == kind);
    let operations = patches.flat_map(|patch| match documents(overlay, patch.text("patch")).remove(0) {
        Yaml::List(operations) => operations,
        other => panic!("{overlay}: {other:?} is no list of operations"),
    });
    let added = operations.filter(|operation| operation.text("path") == "/spec/template/spec/containers/0/env/-");
    added.map(|operation| (operation.text("value.name").to_owned(), operation.text("value.value").to_owned())).collect()
}

fn node_config(overlay: &str) -> NodeConfig {
    let environment = environment(stateful_set().at("containers.0").unwrap(), added(overlay, "StatefulSet"));
    NodeConfig::parse(Path::new("/etc/weir/node.toml"), &read("kubernetes/base/node.toml"), environment).unwrap()
}

fn agent_config(overlay: &str) -> AgentConfig {
    let environment = environment(daemon_set().at("containers.0").unwrap(), added(overlay, "DaemonSet"));
    AgentConfig::parse(Path::new("/etc/weir/agent.toml"), &read("kubernetes/base/agent.toml"), environment).unwrap()
}

#[test]
fn configs_are_valid_with_the_environment_of_their_pods() {
    for overlay in OVERLAYS {
        let node = node_config(overlay);
        assert_eq!((node.id.as_str(), node.log.level), ("weir-0", LogLevel::Object), "{overlay}");
        let scheme =
            [("gcp", "gs://"), ("azure", "az://")].iter().find(|(of, _)| *of == overlay).map_or("s3://", |(_, scheme)| scheme);
        assert!(node.log.location.starts_with(scheme), "{overlay}: {:?}", node.log.location);
        assert_eq!(node.mesh.advertise, Some("10.0.0.7:7444".parse().unwrap()));
        assert_eq!(node.tls.cert, Path::new("/etc/weir/tls/weir-0.pem"));
        assert!(node.listen.sql.ip().is_loopback() && node.listen.http.ip().is_loopback(), "they have no passwords");

        let agent = agent_config(overlay);
        assert_eq!(agent.host.as_deref(), Some("ip-10-0-0-1.example.internal"));
        assert_eq!(agent.metadata.kubernetes.node, agent.host);
        assert_eq!(agent.enrol.unwrap().token_file, Path::new("/etc/weir/tokens/ip-10-0-0-1.example.internal"));
        let providers: Vec<&str> = agent.metadata.cloud.providers.into_iter().map(CloudProvider::as_str).collect();
        let (named, configured) = if overlay == "on-prem" { (vec![], Some("onprem")) } else { (vec![overlay], None) };
        assert_eq!((providers, agent.cloud.as_deref()), (named, configured));
    }
}

#[test]
fn agents_name_every_node() {
    let agent = agent_config("aws");
    let set = object("StatefulSet", "weir");
    let replicas: usize = set.text("spec.replicas").parse().unwrap();
    let headless = object("Service", set.text("spec.serviceName"));
    assert_eq!((headless.text("spec.clusterIP"), headless.text("spec.publishNotReadyAddresses")), ("None", "true"));
    let port = node_config("aws").listen.quic.port();
    let named: Vec<&str> = agent.nodes.iter().map(weir_config::HostPort::as_str).collect();
    let expected: Vec<String> =
        (0..replicas).map(|at| format!("weir-{at}.{}.weir.svc:{port}", headless.text("metadata.name"))).collect();
    assert_eq!(named, expected);
}

/// `number/PROTOCOL` of ports, by the key that holds the number.
fn ports(all: &[Yaml], key: &str) -> BTreeSet<String> {
    all.iter().map(|port| format!("{}/{}", port.text(key), port.text("protocol"))).collect()
}

#[test]
fn ports_are_those_of_the_config() {
    let listen = node_config("aws").listen;
    let TcpListen::SameAsQuic = listen.tcp else { panic!("agents where UDP is blocked come by the same number") };
    let agents = [format!("{}/UDP", listen.quic.port()), format!("{}/TCP", listen.quic.port())];
    let mesh = format!("{}/TCP", listen.mesh.port());
    let all: BTreeSet<String> = agents.iter().cloned().chain([mesh.clone()]).collect();

    let container = stateful_set().at("containers.0").unwrap().clone();
    assert_eq!(ports(container.list("ports"), "containerPort"), all);
    assert_eq!(ports(object("Service", "weir-nodes").list("spec.ports"), "port"), all);
    assert_eq!(ports(object("Service", "weir").list("spec.ports"), "port"), BTreeSet::from(agents.clone()));
    for service in ["weir", "weir-nodes"] {
        for port in object("Service", service).list("spec.ports") {
            let same = |own: &&Yaml| own.text("name") == port.text("targetPort") && own.text("protocol") == port.text("protocol");
            let own = container.list("ports").iter().find(same).expect("the port has a name");
            assert_eq!(own.text("containerPort"), port.text("port"));
        }
    }
    let policy = object("NetworkPolicy", "nodes");
    assert_eq!(ports(policy.list("spec.ingress.0.ports"), "port"), BTreeSet::from(agents));
    assert_eq!(policy.list("spec.ingress.0.from"), [], "agents have the addresses of hosts");
    assert_eq!(ports(policy.list("spec.ingress.1.ports"), "port"), BTreeSet::from([mesh]));
    let dockerfile = read("docker/Dockerfile");
    let exposed = dockerfile.lines().find_map(|line| line.strip_prefix("EXPOSE ")).expect("the node's");
    assert_eq!(exposed.to_uppercase().split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), all);
}

#[test]
fn the_agent_has_the_rights_of_its_unit_and_no_other() {
    const UNIT: &str = "systemd/weir-agent.service";
    let pod = daemon_set();
    let container = pod.at("containers.0").unwrap();
    let bounding = service(UNIT, "CapabilityBoundingSet");
    let added: BTreeSet<String> =
        container.texts("securityContext.capabilities.add").iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(added, bounding.split(' ').map(str::to_owned).collect());
    assert_eq!(container.texts("securityContext.capabilities.drop"), ["ALL"]);
    assert_eq!(container.text("securityContext.privileged"), "false");
    // NoNewPrivileges, ProtectSystem=strict, MemoryMax, TimeoutStopSec.
    assert_eq!(
        (service(UNIT, "NoNewPrivileges").as_str(), container.text("securityContext.allowPrivilegeEscalation")),
        ("yes", "false")
    );
    assert_eq!(
        (service(UNIT, "ProtectSystem").as_str(), container.text("securityContext.readOnlyRootFilesystem")),
        ("strict", "true")
    );
    assert_eq!(format!("{}i", service(UNIT, "MemoryMax")), container.text("resources.limits.memory"));
    assert_eq!(service(UNIT, "TimeoutStopSec"), pod.text("terminationGracePeriodSeconds"));
    let writable: Vec<&str> = container
        .list("volumeMounts")
        .iter()
        .filter(|mount| mount.text("readOnly") != "true")
        .map(|mount| mount.text("mountPath"))
        .collect();
    assert_eq!(writable, [agent_config("aws").data_dir.to_str().unwrap()]);

    let role = object("ClusterRole", "weir-agent");
    let rules = role.list("rules");
    assert_eq!(rules.len(), 1);
    assert_eq!((rules[0].texts("apiGroups"), rules[0].texts("resources")), (vec![""], vec!["pods"]));
    assert_eq!(rules[0].texts("verbs"), ["get", "list", "watch"]);
    let binding = object("ClusterRoleBinding", "weir-agent");
    assert_eq!((binding.text("roleRef.name"), binding.list("subjects").len()), ("weir-agent", 1));
    assert_eq!(binding.text("subjects.0.name"), pod.text("serviceAccountName"));
    assert_eq!(binding.text("subjects.0.namespace"), object("DaemonSet", "weir-agent").text("metadata.namespace"));
}

/// The namespace of the nodes enforces "restricted": these are its conditions.
#[test]
fn a_node_has_no_rights_at_all() {
    let pod = stateful_set();
    let container = pod.at("containers.0").unwrap();
    let Some(Yaml::Map(labels)) = object("Namespace", "weir").at("metadata.labels").cloned() else { panic!("labels") };
    assert!(labels.iter().all(|(_, level)| *level == Yaml::Text("restricted".to_owned())) && labels.len() == 3);
    assert_eq!(pod.text("securityContext.runAsNonRoot"), "true");
    assert_eq!(pod.text("securityContext.seccompProfile.type"), "RuntimeDefault");
    assert_eq!(pod.text("automountServiceAccountToken"), "false");
    assert_eq!(container.text("securityContext.allowPrivilegeEscalation"), "false");
    assert_eq!(container.texts("securityContext.capabilities.drop"), ["ALL"]);
    assert_eq!(container.list("securityContext.capabilities.add"), []);
    assert_eq!(unit("systemd/weir-node.service")[&("Service".to_owned(), "CapabilityBoundingSet".to_owned())], "");
    assert_eq!(service("systemd/weir-node.service", "TimeoutStopSec"), pod.text("terminationGracePeriodSeconds"));
    assert!(["hostPID", "hostNetwork", "hostIPC"].iter().all(|key| pod.at(key).is_none()));
    assert!(pod.list("volumes").iter().all(|volume| volume.at("hostPath").is_none()));
}

#[test]
fn what_selects_pods_meets_them() {
    for (kind, name, selectors) in [
        (
            "StatefulSet",
            "weir",
            vec![
                ("Service", "weir", "spec.selector"),
                ("Service", "weir-nodes", "spec.selector"),
                ("PodDisruptionBudget", "weir", "spec.selector.matchLabels"),
                ("NetworkPolicy", "nodes", "spec.podSelector.matchLabels"),
                ("StatefulSet", "weir", "spec.selector.matchLabels"),
            ],
        ),
        ("DaemonSet", "weir-agent", vec![("DaemonSet", "weir-agent", "spec.selector.matchLabels")]),
    ] {
        let of = object(kind, name);
        let labels = of.at("spec.template.metadata.labels").expect("pods have labels");
        for (kind, name, path) in selectors {
            let selecting = object(kind, name);
            assert_eq!(selecting.at(path), Some(labels), "{kind} {name}");
            assert_eq!(selecting.text("metadata.namespace"), of.text("metadata.namespace"), "{kind} {name}");
        }
    }
    for pod in [stateful_set(), daemon_set()] {
        let names = |path: &str, of: &Yaml| of.list(path).iter().map(|one| one.text("name").to_owned()).collect::<BTreeSet<_>>();
        let mut volumes = names("volumes", &pod);
        if pod == stateful_set() {
            volumes.insert(object("StatefulSet", "weir").text("spec.volumeClaimTemplates.0.metadata.name").to_owned());
        }
        assert_eq!(names("containers.0.volumeMounts", &pod), volumes);
    }
}
