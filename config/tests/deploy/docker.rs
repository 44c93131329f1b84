//! The images: the compiler is the workspace's, users and commands are those of the units and manifests, and the root folder is enough.

use std::process::Command;

use super::{deploy, folder, read, service, yaml};

/// The instructions of one stage, in order.
fn stage(name: &str) -> Vec<(String, String)> {
    let text = read("docker/Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let instructions = lines.map(|line| line.split_once(' ').expect("INSTRUCTION arguments"));
    let from_here = instructions.skip_while(|(key, rest)| *key != "FROM" || !rest.ends_with(&format!(" AS {name}")));
    let mut stage: Vec<(String, String)> = Vec::new();
    for (key, rest) in from_here {
        if key == "FROM" && !stage.is_empty() {
            break;
        }
        stage.push((key.to_owned(), rest.to_owned()));
    }
    assert!(!stage.is_empty(), "no stage {name}");
    stage
}

fn said(stage: &[(String, String)], key: &str) -> String {
    let all: Vec<&str> = stage.iter().filter(|(other, _)| other == key).map(|(_, rest)| rest.as_str()).collect();
    assert_eq!(all.len(), 1, "{key} stands once: {all:?}");
    all[0].to_owned()
}

#[test]
fn the_compiler_is_the_workspaces() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).unwrap();
    let value = |key: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = ")).expect("the workspace's");
        line.trim_matches('"').to_owned()
    };
    assert_eq!(said(&stage("build"), "FROM"), format!("rust:{}-slim-bookworm AS build", value("rust-version")));
    let kustomization = yaml::documents("kustomization", &read("kubernetes/base/kustomization.yaml")).remove(0);
    for image in kustomization.list("images") {
        assert_eq!(image.text("newTag"), value("version"), "{}", image.text("name"));
        assert!(read("docker/Dockerfile").contains(&format!("-t {}:{} ", image.text("name"), value("version"))));
    }
}

#[test]
fn images_start_what_the_units_start() {
    for (name, unit, user) in
        [("node", "systemd/weir-node.service", "65532:65532"), ("agent", "systemd/weir-agent.service", "0:0")]
    {
        let stage = stage(name);
        assert_eq!(said(&stage, "FROM"), format!("scratch AS {name}"), "nothing beside the binary");
        assert_eq!(said(&stage, "COPY"), format!("--from=build /rootfs/{name} /"));
        assert_eq!(said(&stage, "USER"), user);
        let words = said(&stage, "ENTRYPOINT") + " " + &said(&stage, "CMD");
        let command: String = words.chars().filter(|c| !"[]\",".contains(*c)).collect();
        assert_eq!(command, service(unit, "ExecStart"));
        assert_eq!(said(&stage, "VOLUME"), format!("/var/lib/{}", service(unit, "StateDirectory")));
        let installed = stage_text("build");
        assert!(installed.contains(&format!("/rootfs/{name}/var/lib/{}", service(unit, "StateDirectory"))), "{installed}");
    }
    let node = yaml::documents("node.yaml", &read("kubernetes/base/node.yaml"));
    let pod = node.iter().find(|object| object.text("kind") == "StatefulSet").unwrap().at("spec.template.spec").unwrap().clone();
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert_eq!(pod.text(&format!("securityContext.{key}")), "65532");
    }
}

fn stage_text(name: &str) -> String {
    stage(name).into_iter().map(|(key, rest)| format!("{key} {rest}\n")).collect()
}

/// This test's own program stands for ours: it is linked in the same way.
#[test]
fn a_program_runs_in_the_root_folder_that_is_made_for_it() {
    let dest = folder("rootfs");
    let program = std::env::current_exe().unwrap();
    let made = Command::new(deploy("docker/rootfs.sh")).args([&program, &dest]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let inside = format!("/usr/bin/{}", program.file_name().unwrap().to_str().unwrap());
    let ran = Command::new("chroot").arg(&dest).args([&inside, "--list"]).output();
    std::fs::remove_dir_all(&dest).unwrap();
    match ran {
        Ok(ran) if ran.status.success() => assert!(String::from_utf8_lossy(&ran.stdout).contains("root_folder")),
        Ok(ran) if ran.status.code() == Some(125) => {
            eprintln!("SKIPPED: chroot: {}", String::from_utf8_lossy(&ran.stderr));
        }
        Ok(ran) => panic!("{}", String::from_utf8_lossy(&ran.stderr)),
        Err(error) => eprintln!("SKIPPED: chroot: {error}"),
    }
}
