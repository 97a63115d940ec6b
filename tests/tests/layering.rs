//! The crates and the edges between them are those of ARCHITECTURE.md.

use std::collections::BTreeMap;

/// Each crate and the only anura crates it may depend on, lowest layer first.
const MAY_USE: &[(&str, &[&str])] = &[
    ("x86", &[]),
    ("vmcore", &[]),
    ("memory", &["vmcore"]),
    ("accel", &["x86", "vmcore", "memory"]),
    ("accel-kvm", &["x86", "vmcore", "memory", "accel"]),
    ("accel-tcg", &["x86", "vmcore", "memory", "accel"]),
    ("chardev", &["vmcore"]),
    ("devices", &["x86", "vmcore", "memory", "chardev"]),
    ("machine", &["x86", "vmcore", "memory", "accel", "chardev", "devices"]),
    ("migration", &["x86", "vmcore", "memory", "machine"]),
    ("monitor", &["x86", "vmcore", "memory", "chardev", "devices", "machine", "migration"]),
    (
        "cli",
        &[
            "x86",
            "vmcore",
            "memory",
            "accel",
            "accel-kvm",
            "accel-tcg",
            "chardev",
            "devices",
            "machine",
            "migration",
            "monitor",
        ],
    ),
    (
        "tests",
        &[
            "x86",
            "vmcore",
            "memory",
            "accel",
            "accel-kvm",
            "accel-tcg",
            "chardev",
            "devices",
            "machine",
            "migration",
            "monitor",
            "cli",
        ],
    ),
    ("xtask", &[]),
    // What runs in a guest knows nothing of what runs it.
    ("bench-guest", &[]),
];

/// The anura crates that a manifest's dependency sections name, development ones left out.
fn edges(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some(rest) = line.strip_prefix("anura-")
        {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '-').unwrap_or(rest.len());
            found.push(rest[..end].to_owned());
        }
    }
    found
}

/// What is wrong with an edge, and the cure.
fn objection(from: &str, to: &str) -> String {
    let cure = match (from, to) {
        ("devices", "accel-kvm" | "accel-tcg" | "accel") => {
            "a chip reaches the CPU through vmcore::IrqLine and MachineRequest"
        }
        (_, "accel-kvm" | "accel-tcg") => "engines are chosen in cli and reached through the traits of accel",
        _ => {
            "move the shared part down, or change ARCHITECTURE.md and this table with the reason in the commit"
        }
    };
    format!("{from} -> {to}: {cure}")
}

fn check(manifests: &BTreeMap<String, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, manifest) in manifests {
        let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| n == name) else {
            wrong.push(format!("{name}: not in the table of layers; add it here and in ARCHITECTURE.md"));
            continue;
        };
        wrong.extend(
            edges(manifest).iter().filter(|e| !allowed.contains(&e.as_str())).map(|e| objection(name, e)),
        );
    }
    wrong
}

fn manifests() -> BTreeMap<String, String> {
    let root = anura_tests::workspace();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        if let Ok(text) = std::fs::read_to_string(entry.path().join("Cargo.toml")) {
            found.insert(entry.file_name().to_string_lossy().into_owned(), text);
        }
    }
    found
}

#[test]
fn no_crate_depends_on_one_that_its_layer_may_not_use() {
    let manifests = manifests();
    assert!(manifests.len() >= MAY_USE.len(), "only {} crates found", manifests.len());
    let wrong = check(&manifests);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_forbidden_edge_and_an_unknown_crate_are_named() {
    let mut manifests = manifests();
    let devices = manifests.get_mut("devices").unwrap();
    *devices = devices.replace("[dependencies]", "[dependencies]\nanura-accel-tcg.workspace = true");
    manifests.insert("newcomer".into(), "[dependencies]\n".into());
    let wrong = check(&manifests);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].starts_with("devices -> accel-tcg: ") && wrong[1].starts_with("newcomer: "));
}

#[test]
fn crates_without_leave_forbid_unsafe_code() {
    let root = anura_tests::workspace();
    for (name, _) in MAY_USE {
        if ["vmcore", "memory", "accel-kvm", "accel-tcg", "bench-guest"].contains(name) {
            continue;
        }
        for file in ["src/lib.rs", "src/main.rs"] {
            if let Ok(text) = std::fs::read_to_string(root.join(name).join(file)) {
                assert!(
                    text.contains("#![forbid(unsafe_code)]"),
                    "{name}/{file} does not forbid unsafe code"
                );
            }
        }
    }
}
