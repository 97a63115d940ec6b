//! Assembled guests print the same text on every engine of this host, and on peers that are installed.
//!
//! `UPDATE_GOLDEN=1` writes what the interpreter prints as what is expected. `ANURA_GUEST=NAME` runs one guest;
//! `ANURA_PEERS=all` asks Bochs too, which takes its time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anura_tests::guests::{self, DISSENT, Engine, Guest, NOT_ON_EMULATED_KVM, NOT_SPLIT_ON_EMULATED_KVM};
use anura_tests::{anura, need, tool};

/// KVM with the kernel's local APICs, which is the default only where guest kernels run in hardware.
const SPLIT: &str = "kvm,kernel-irqchip=split";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/expected.txt")
}

/// The expected text of each guest.
fn expected() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(golden()).unwrap_or_default();
    let parts = text.split("== ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, text)| (name.to_owned(), text.trim_end().to_owned())).collect()
}

/// Our engines that this program has on this host.
fn engines(program: &Path) -> Vec<(Engine, PathBuf)> {
    let help = std::process::Command::new(program).args(["-accel", "help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let mut found = Vec::new();
    for name in ["interp", "interp-portable", "jit", "kvm", SPLIT] {
        let listed = help.lines().any(|line| name.split(',').next() == Some(line.trim()));
        if listed && there(&Engine::Ours(name), program) {
            found.push((Engine::Ours(name), program.to_owned()));
        } else {
            eprintln!("skipped: -accel {name} is not there");
        }
    }
    if let Some(qemu) = tool("qemu-system-x86_64") {
        found.push((Engine::Qemu, qemu));
    }
    if std::env::var("ANURA_PEERS").is_ok_and(|v| v == "all")
        && let Some(bochs) = tool("bochs")
    {
        found.push((Engine::Bochs, bochs));
    }
    found
}

/// Whether this engine runs anything here.
fn there(engine: &Engine, program: &Path) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let guest = guests::exit_causes().into_iter().find(|g| g.name == "cpuid").unwrap();
    guests::run(engine, program, &guest, &guest.rom().unwrap(), dir.path()).ends_with("[exit]")
}

/// Why this engine cannot be asked for this guest on this host.
fn beyond(engine: &Engine, guest: &Guest) -> Option<&'static str> {
    static EMULATED: LazyLock<bool> =
        LazyLock::new(|| anura_accel_kvm::Kvm::default().kind().is_ok_and(|k| k.ring0_emulated));
    let split = NOT_SPLIT_ON_EMULATED_KVM.iter().filter(|_| *engine == Engine::Ours(SPLIT));
    let listed = NOT_ON_EMULATED_KVM.iter().chain(split).find(|(name, _)| *name == guest.name);
    let kvm = matches!(engine, Engine::Ours("kvm" | SPLIT));
    listed.filter(|_| kvm && *EMULATED).map(|(_, why)| *why)
}

fn check(guests: &[Guest]) {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let only = std::env::var("ANURA_GUEST").ok();
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut expected = expected();
    let mut wrong = String::new();
    let (mut runs, mut skips) = (0, 0);
    let dir = tempfile::tempdir().unwrap();
    let engines = engines(&program);
    for guest in guests.iter().filter(|g| only.as_ref().is_none_or(|name| name == g.name)) {
        let rom = guest.rom().unwrap_or_else(|e| panic!("{}: {e}", guest.name));
        for (engine, program) in &engines {
            if let Some(why) = beyond(engine, guest) {
                eprintln!(
                    "skipped: {} on {}: this host's KVM emulates ring 0: {why}",
                    guest.name,
                    engine.name()
                );
                skips += 1;
                continue;
            }
            let text = guests::run(engine, program, guest, &rom, dir.path());
            runs += 1;
            if *engine == Engine::Ours("interp") && update {
                expected.insert(guest.name.to_owned(), text.clone());
            }
            let want = expected.get(guest.name).cloned().unwrap_or_default();
            if text != want && !DISSENT.iter().any(|(g, e, _)| *g == guest.name && *e == engine.name()) {
                let _ = writeln!(
                    wrong,
                    "== {} on {}: expected\n{want}\nfound\n{text}",
                    guest.name,
                    engine.name()
                );
            }
        }
    }
    if update {
        let text: String = expected.iter().map(|(name, text)| format!("== {name}\n{text}\n")).collect();
        std::fs::create_dir_all(golden().parent().unwrap()).unwrap();
        std::fs::write(golden(), text).unwrap();
    }
    eprintln!("{runs} runs, {skips} skipped");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn exit_causes_print_the_same_on_every_engine() {
    let guests = guests::exit_causes();
    assert_eq!(guests.len(), 36);
    check(&guests);
}

#[test]
fn assembled_guests_print_the_same_on_every_engine() {
    let guests = guests::others();
    assert!(guests.len() >= 60, "{} guests", guests.len());
    check(&guests);
}
