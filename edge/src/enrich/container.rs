//! Which container a cgroup path names: the rules of container runtimes, as pure functions over text.
//!
//! The innermost container segment wins (a cluster inside a container, an init inside a scope). What is no container still has a
//! unit (`*.service`, `*.scope`) and a path. Conmon's own scopes are no containers. Every rule stands in the table at the bottom.

use weir_schema::Text;

/// What a cgroup path says about who runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The runtime's container id.
    pub container_id: Option<Text>,
    /// The runtime, from a short closed list; `unknown` when only the id could be told.
    pub runtime: Option<&'static str>,
    /// Kubernetes' pod uid, with dashes as the API writes it.
    pub pod_uid: Option<Text>,
    /// The last systemd unit on the path that is no container.
    pub unit: Option<Text>,
    /// True when the path ends at the container itself and not at a cgroup inside it: its mkdir is the container's start.
    pub is_container: bool,
}

/// Reads a cgroup path as `/proc/PID/cgroup` or a walk of the hierarchy gives it.
pub fn identify(path: &str) -> Identity {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    let mut identity = Identity::default();
    for (at, part) in parts.iter().enumerate().rev() {
        let parent = at.checked_sub(1).map_or("", |up| parts[up]);
        if identity.container_id.is_none()
            && let Some((runtime, id)) = container_part(parent, part)
        {
            identity.container_id = Some(id.into());
            identity.runtime = Some(runtime);
            identity.is_container = at + 1 == parts.len();
            if part.contains(':') {
                identity.pod_uid = pod_uid(part);
            }
            continue;
        }
        if identity.pod_uid.is_none() {
            identity.pod_uid = pod_uid(part);
        }
        if identity.unit.is_none() && (part.ends_with(".service") || part.ends_with(".scope")) {
            identity.unit = Some((*part).into());
        }
    }
    identity
}

/// The runtime and id of one path segment, or nothing when it names no container.
fn container_part<'a>(parent: &str, part: &'a str) -> Option<(&'static str, &'a str)> {
    // systemd's cgroup driver written by hand: `kubepods-….slice:cri-containerd:<id>`.
    if let Some((rest, id)) = part.rsplit_once(':') {
        let driver = rest.rsplit(':').next().unwrap_or("");
        return is_id(id).then(|| (runtime_of(driver).unwrap_or("unknown"), id));
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some(("lxc", name));
    }
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    if let Some((prefix, id)) = bare.rsplit_once('-')
        && is_id(id)
    {
        return runtime_of(prefix).map(|runtime| (runtime, id));
    }
    if is_id(bare) && bare == part {
        let pod = parent.starts_with("pod") || parent.contains("-pod");
        return Some((runtime_of(parent).unwrap_or(if pod { "kubernetes" } else { "unknown" }), part));
    }
    match parent {
        "lxc" => Some(("lxc", part)),
        // Fargate: `/ecs/<task>/<task>-<number>`; the task segment itself is no container.
        _ if is_fargate(parent, part) => Some(("ecs", part)),
        _ => None,
    }
}

/// The runtime whose driver writes `prefix` before the id. Conmon's own scopes (`libpod-conmon-`, `crio-conmon-`) are not listed.
fn runtime_of(prefix: &str) -> Option<&'static str> {
    Some(match prefix {
        "docker" => "docker",
        "cri-containerd" | "nerdctl" | "containerd" => "containerd",
        "crio" => "crio",
        "libpod" | "libpod_parent" => "podman",
        _ => return None,
    })
}

fn is_id(text: &str) -> bool {
    text.len() == CONTAINER_ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_fargate(parent: &str, part: &str) -> bool {
    parent.len() == 32
        && parent.bytes().all(|b| b.is_ascii_hexdigit())
        && part
            .strip_prefix(parent)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The pod uid of one segment: `pod<uid>` or `kubepods[-class]-pod<uid with _>.slice`.
fn pod_uid(part: &str) -> Option<Text> {
    // Written by hand: the slice stands before the first colon.
    let part = part.split(':').next().unwrap_or(part);
    let bare = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match bare.rsplit_once("-pod") {
        Some((_, uid)) => uid,
        None => bare.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let plain = digits == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    plain.then(|| uid.into())
}

/// Runtimes name containers by 64 hexadecimal digits.
const CONTAINER_ID_DIGITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

    /// path | runtime | pod | unit | container itself; `ID`, `INNER`, `UID` and `U_ID` (uid with underscores) are filled in.
    const TABLE: &str = "
        /system.slice/docker-ID.scope                                                    | docker     | -   | -                 | yes
        /docker/ID                                                                       | docker     | -   | -                 | yes
        /docker/ID/sub                                                                   | docker     | -   | -                 | no
        /docker/ID/init.scope                                                            | docker     | -   | init.scope        | no
        /../../docker/ID                                                                 | docker     | -   | -                 | yes
        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/cri-containerd-ID.scope | containerd | UID | - | yes
        /kubepods.slice/kubepods-podU_ID.slice/crio-ID.scope                             | crio       | UID | -                 | yes
        /kubepods.slice/kubepods-podU_ID.slice/crio-conmon-ID.scope                      | -          | UID | crio-conmon-ID.scope | no
        /machine.slice/libpod-ID.scope                                                   | podman     | -   | -                 | yes
        /machine.slice/libpod-ID.scope/container                                         | podman     | -   | -                 | no
        /machine.slice/libpod-conmon-ID.scope                                            | -          | -   | libpod-conmon-ID.scope | no
        /libpod_parent/libpod-ID                                                         | podman     | -   | -                 | yes
        /user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container | podman   | -   | user@1000.service | no
        /kubepods/burstable/podUID/ID                                                    | kubernetes | UID | -                 | yes
        /kubepods/besteffort/podUID/ID/leaf                                              | kubernetes | UID | -                 | no
        /kubepods/pod0123456789abcdef0123456789abcdef/ID                                 | kubernetes | 0123456789abcdef0123456789abcdef | - | yes
        /kubepods/burstable/podUID                                                       | -          | UID | -                 | no
        /kubepods-besteffort-podU_ID.slice:cri-containerd:ID                             | containerd | UID | -                 | yes
        /system.slice/containerd.service/kubepods-podU_ID.slice:cri-containerd:ID        | containerd | UID | containerd.service | yes
        /kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_ID.slice/cri-containerd-ID.scope | containerd | UID | - | yes
        /docker/ID/kubelet/kubepods/podUID/INNER                                         | kubernetes | UID | -                 | yes
        /ecs/abc/ID                                                                      | unknown    | -   | -                 | yes
        /ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1234567890 | ecs       | -   | -                 | yes
        /lxc/web                                                                         | lxc        | -   | -                 | yes
        /lxc.payload.web/system.slice/nginx.service                                      | lxc        | -   | nginx.service     | no
        /system.slice/nginx.service                                                      | -          | -   | nginx.service     | no
        /user.slice/user-0.slice/session-4.scope                                         | -          | -   | session-4.scope   | no
        /process_api/5888cc84b17b9b77b0817dd69ad1bc2c                                    | -          | -   | -                 | no
        /lab-123                                                                         | -          | -   | -                 | no
        /                                                                                | -          | -   | -                 | no
    ";

    #[test]
    fn path_rules() {
        let fill = |text: &str| {
            text.replace("INNER", INNER).replace("U_ID", &UID.replace('-', "_")).replace("UID", UID).replace("ID", ID)
        };
        let rows = TABLE.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut checked = 0;
        for row in rows {
            let cells: Vec<String> = row.split('|').map(|cell| fill(cell.trim())).collect();
            let seen = identify(&cells[0]);
            let dash = |value: Option<&str>| value.unwrap_or("-").to_owned();
            let yes = if seen.is_container { "yes" } else { "no" };
            let found = [dash(seen.runtime), dash(seen.pod_uid.as_deref()), dash(seen.unit.as_deref()), yes.to_owned()];
            assert_eq!(found[..], cells[1..], "{row}");
            if seen.runtime.is_some_and(|runtime| runtime != "lxc" && runtime != "ecs") {
                let id = if row.contains("INNER") { INNER } else { ID };
                assert_eq!(seen.container_id.as_deref(), Some(id), "{row}");
            }
            checked += 1;
        }
        assert_eq!(checked, 30);
    }
}
