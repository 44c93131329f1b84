//! The overlays as they are applied: `kubectl kustomize` renders them, PyPI's `kubernetes-validate` holds them against the API's schemas.

use std::process::{Command, Output};

use super::kubernetes::OVERLAYS;
use super::yaml::documents;
use super::{deploy, folder};

/// What a tool said, or nothing, loudly, where it is not installed.
fn ran(program: &str, command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {program}: {error}; `.ci/run` installs it where it can");
            None
        }
    }
}

fn rendered(overlay: &str) -> Option<String> {
    let folder = deploy(&format!("kubernetes/overlays/{overlay}"));
    let output = ran("kubectl", Command::new("kubectl").arg("kustomize").arg(folder))?;
    assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn overlays_render_and_name_the_configs_that_they_bring() {
    for overlay in OVERLAYS {
        let Some(text) = rendered(overlay) else { return };
        let objects = documents(overlay, &text);
        assert_eq!(objects.len(), 17, "{overlay}");
        for kind in ["StatefulSet", "DaemonSet"] {
            let set = objects.iter().find(|object| object.text("kind") == kind).unwrap();
            let volumes = set.list("spec.template.spec.volumes");
            let named = volumes.iter().find_map(|volume| Some(volume.at("configMap")?.text("name"))).unwrap();
            let is_it = |object: &super::yaml::Yaml| {
                object.text("kind") == "ConfigMap"
                    && object.text("metadata.name") == named
                    && object.text("metadata.namespace") == set.text("metadata.namespace")
            };
            assert!(objects.iter().any(is_it), "{overlay}: {kind} names the config {named}");
            assert!(set.text("spec.template.spec.containers.0.image").contains(":0."), "an image has its version");
        }
    }
}

#[test]
fn the_api_takes_the_overlays() {
    // In CI the tool has a place of its own.
    let tool = std::env::var("KUBERNETES_VALIDATE").unwrap_or_else(|_| "kubernetes-validate".to_owned());
    let dir = folder("rendered");
    for overlay in OVERLAYS {
        let Some(text) = rendered(overlay) else { break };
        let file = dir.join(format!("{overlay}.yaml"));
        std::fs::write(&file, text).unwrap();
        let Some(output) = ran("kubernetes-validate", Command::new(&tool).args(["--strict", "--no-warn"]).arg(&file)) else {
            break;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{overlay}: {said}");
        assert_eq!(said.lines().filter(|line| line.contains(" passed for resource ")).count(), 17, "{overlay}: {said}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
