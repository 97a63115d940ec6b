//! Which engine runs the guest: the list of those built in, and the choice among what the user asked for.
//!
//! The list is passed along, not a static: nothing below `cli` knows it. A choice that falls back says so in one
//! line; an engine asked for alone never falls back.

use anura_accel::verify::{Options, Verify};
use anura_accel::{Accelerator, Capabilities};
use anura_accel_kvm::{Choice, Irqchip, Kvm, Stepping};
use anura_accel_tcg::{Interp, JitEngine, PortableInterp};
use anura_machine::config::{AccelConfig, Board, MachineConfig};

/// The names of the engines of this build, best first.
pub const BUILT_IN: [&str; 4] = ["kvm", "jit", "interp", "interp-portable"];

/// Makes an engine of this build as its options say; `None` if there is none of that name.
pub fn make(accel: &AccelConfig, board: &Board) -> Option<Box<dyn Accelerator>> {
    Some(match canonical(&accel.name) {
        "kvm" => Box::new(Kvm::new(Interp).with(kvm_choice(accel, board))),
        "jit" => Box::new(jit(accel)),
        "interp" => Box::new(Interp),
        "interp-portable" => Box::new(PortableInterp),
        _ => return None,
    })
}

/// The JIT as QEMU's words for its own ask for it.
fn jit(accel: &AccelConfig) -> JitEngine {
    let property = |key: &str| accel.properties.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let mut engine = JitEngine::default();
    if let Some(mib) = property("tb-size").and_then(|v| v.parse::<usize>().ok()).filter(|n| *n > 0) {
        engine.code_bytes = mib << 20;
    }
    engine.single_thread = property("thread") == Some("single");
    engine.chaos = property("chaos").and_then(|v| v.parse().ok()).unwrap_or(0);
    engine.perf_map = property("perfmap") == Some("on");
    engine.jit_dump = property("jitdump") == Some("on");
    engine.one_insn = property("one-insn-per-tb") == Some("on");
    engine.by_blocks = property("by-blocks") == Some("on");
    if engine.by_blocks {
        // Loops are to be compared too, each as its blocks at first and then as a whole.
        engine.jumps_back = 32;
    }
    engine
}

/// What the options of `-accel kvm` and of the machine ask of KVM.
fn kvm_choice(accel: &AccelConfig, board: &Board) -> Choice {
    let property = |key: &str| accel.properties.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    Choice {
        stepping: match property("stepper") {
            Some("failures") => Stepping::Failures,
            Some("off") => Stepping::Off,
            _ => Stepping::Kernels,
        },
        irqchip: match property("kernel-irqchip").or(board.kernel_irqchip.as_deref()) {
            Some("off") => Irqchip::Off,
            // PIC, IOAPIC and PIT are ours: what QEMU calls split is all of "on" that there is.
            Some("on" | "split") => Irqchip::Split,
            _ => Irqchip::Auto,
        },
    }
}

/// Names that stand for an engine of ours.
fn canonical(name: &str) -> &str {
    match name {
        // QEMU's word for a software engine.
        "tcg" => "jit",
        name => name,
    }
}

/// The pair of engines that `-accel verify=A:B` asks for.
fn verify(accel: &AccelConfig, board: &Board) -> Result<Box<dyn Accelerator>, String> {
    let property = |key| accel.properties.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let (lead, follow) = property("verify").and_then(|v| v.split_once(':')).unwrap_or_default();
    let at_blocks = property("at") == Some("blocks");
    let engine = |name: &str, properties| {
        make(&AccelConfig { name: name.into(), properties }, board)
            .ok_or_else(|| format!("-accel verify={lead}:{follow}: {name} is not in this build"))
    };
    let lead_properties = if at_blocks { vec![("by-blocks".into(), "on".into())] } else { Vec::new() };
    let mut options = Options { at_blocks, ..Options::default() };
    if let Some(n) = property("every").and_then(|n| n.parse().ok()) {
        options.every = n;
    }
    if let Some(file) = property("file") {
        options.file = file.into();
    }
    options.replay = property("replay").map(Into::into);
    Ok(Box::new(Verify::new(engine(lead, lead_properties)?, engine(follow, Vec::new())?, options)))
}

/// Picks the engine for `config`; a fall-back or a choice of our own is announced through `say`.
pub fn choose(config: &MachineConfig, say: &mut dyn FnMut(String)) -> Result<Box<dyn Accelerator>, String> {
    let mut asked: Vec<AccelConfig> = match config.accel.as_slice() {
        [] => BUILT_IN.map(AccelConfig::named).to_vec(),
        asked => asked.to_vec(),
    };
    for (wanted, word) in [(config.log.perf_map, "perfmap"), (config.log.jit_dump, "jitdump")] {
        if wanted {
            asked.iter_mut().for_each(|a| a.properties.push((word.into(), "on".into())));
        }
    }
    let mut refused = Vec::new();
    for accel in &asked {
        if accel.name == "verify" {
            return verify(accel, &config.board);
        }
        let Some(engine) = make(accel, &config.board) else {
            refused.push(format!(
                "-accel {}: not in this build, which has {}",
                accel.name,
                BUILT_IN.join(", ")
            ));
            continue;
        };
        match engine.probe() {
            Err(why) => refused.push(format!("-accel {}: {why}", accel.name)),
            // Nobody asked for this one, and the next does better.
            Ok(Capabilities { slow: Some(why), .. }) if config.accel.is_empty() => {
                refused.push(format!("{} would work, but {why}", engine.name()));
            }
            Ok(_) if config.accel.is_empty() && config.icount.is_some() && engine.name() == "kvm" => {
                refused.push("kvm has no counted time (-icount)".into());
            }
            Ok(capabilities) => {
                let name = engine.name();
                match (config.accel.is_empty(), refused.is_empty()) {
                    (true, true) => say(format!("engine {name}")),
                    (true, false) => say(format!("engine {name}: {}", refused.join("; "))),
                    (false, false) => {
                        say(format!("{}; falling back to {}", refused.join("; "), accel.name));
                    }
                    (false, true) => {
                        if let Some(why) = capabilities.slow {
                            say(format!("-accel {name}: {why}; -accel interp is faster"));
                        }
                    }
                }
                return Ok(engine);
            }
        }
    }
    Err(refused.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(names: &[&str]) -> (Result<&'static str, String>, Vec<String>) {
        let config = MachineConfig {
            accel: names.iter().map(|n| AccelConfig::named(*n)).collect(),
            ..Default::default()
        };
        let mut said = Vec::new();
        let result = choose(&config, &mut |line| said.push(line)).map(|e| e.name());
        (result, said)
    }

    #[test]
    fn an_engine_that_is_there_is_taken_silently() {
        assert_eq!(pick(&["interp"]), (Ok("interp"), vec![]));
        assert_eq!(pick(&["tcg"]), (Ok("jit"), vec![]));
    }

    #[test]
    fn a_fall_back_is_announced_and_a_lone_engine_never_falls_back() {
        let (engine, said) = pick(&["xen", "tcg"]);
        assert_eq!(engine, Ok("jit"));
        assert!(said.len() == 1 && said[0].contains("-accel xen") && said[0].contains("falling back to tcg"));
        let (engine, _) = pick(&["xen"]);
        assert!(engine.unwrap_err().contains("interp"), "the way out is named");
    }

    #[test]
    fn a_choice_of_our_own_is_said() {
        let (engine, said) = pick(&[]);
        // Which one it is depends on the host.
        assert!(matches!(engine, Ok("jit" | "kvm")) && said.len() == 1, "{engine:?} {said:?}");
    }
}
