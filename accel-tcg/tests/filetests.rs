//! Guest bytes and the IR that the front end makes of them, as text (`filetests/*.x86`).
//!
//! A case is a line `> mode bytes ; what it shows` followed by the operations. Where the front end changes on purpose,
//! `ANURA_BLESS=1 cargo test -p anura-accel-tcg --test filetests` rewrites the expectation, to be read in the diff.
//!
//! In `filetests/host/*.ir` a case is `> what it shows`, a block as text, `---`, and the host's code for it.

use anura_accel_tcg::frontend::blocks;
use anura_accel_tcg::frontend::effects::Features;
use anura_accel_tcg::ir::{parse, print, verify};
use anura_accel_tcg::jit;
use anura_accel_tcg::mode::key;
use anura_accel_tcg::opt;
use std::path::Path;

fn mode(name: &str) -> u32 {
    let flat = key::PROT | key::CS_BASE0 | key::FLAT | key::CS_FLAT;
    match name {
        "64" => key::L64 | flat | key::SSE,
        "32" => key::CODE32 | key::STACK32 | flat | key::SSE,
        "32seg" => key::CODE32 | key::STACK32 | key::PROT,
        "16" => 0,
        "64fpuoff" => key::L64 | flat | key::TS,
        _ => panic!("no mode {name}"),
    }
}

fn build(case: &str) -> String {
    let head = case.split(';').next().unwrap();
    let mut words = head.split_whitespace();
    let mode = mode(words.next().unwrap());
    let hex: String = words.collect();
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    // What follows the bytes is a jump to itself.
    let mut page = bytes.clone();
    page.extend([0xeb, 0xfe]);
    let features = Features::all();
    let built = blocks::build(
        &page,
        || -> Result<[u8; 15], ()> { Err(()) },
        (0x1000, 0x4000_0000, mode),
        &features,
        64,
    )
    .unwrap();
    let mut block = built.block;
    verify::block(&block).unwrap_or_else(|e| panic!("{case}: {e}\n{}", print::block(&block)));
    opt::flags::run(&mut block, opt::flags::Runner::Translated);
    verify::block(&block).unwrap_or_else(|e| panic!("{case}: after opt: {e}"));
    let text = print::block(&block);
    let again = parse::block(&text).unwrap_or_else(|e| panic!("{case}: {e}\n{text}"));
    assert_eq!(print::block(&again), text, "{case}: round trip");
    let body = text.split_once('\n').unwrap().1;
    // The closing jump is the same everywhere.
    body.lines()
        .filter(|l| !l.ends_with("jmp.i64 0x40000000") || bytes.len() > 60)
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn the_front_end_makes_the_expected_operations() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let bless = std::env::var_os("ANURA_BLESS").is_some();
    let entries = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = entries.filter(|p| p.is_file()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut out = String::new();
        for case in text.split("\n> ").map(|c| c.trim_start_matches("> ")) {
            if !case.contains(';') {
                continue;
            }
            let (head, expected) = case.split_once('\n').unwrap_or((case, ""));
            let got = build(head);
            if !bless {
                assert_eq!(got.trim_end(), expected.trim_end(), "{}: {head}", file.display());
            }
            out += &format!("> {head}\n{}\n\n", got.trim_end());
        }
        if bless {
            std::fs::write(&file, out).unwrap();
        }
    }
}

#[test]
fn the_back_end_writes_the_expected_host_code() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/host");
    let bless = std::env::var_os("ANURA_BLESS").is_some();
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut cases = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut out = String::new();
        for case in text.split("\n> ").map(|c| c.trim_start_matches("> ")) {
            let Some((head, rest)) = case.split_once('\n') else { continue };
            let (ir, expected) = rest.split_once("---\n").unwrap_or((rest, ""));
            let block = parse::block(ir).unwrap_or_else(|e| panic!("{}: {head}: {e}", file.display()));
            verify::block(&block).unwrap_or_else(|e| panic!("{}: {head}: {e}", file.display()));
            let got = jit::host_text(&block);
            if !bless {
                assert_eq!(got.trim_end(), expected.trim_end(), "{}: {head}", file.display());
            }
            out += &format!("> {head}\n{}\n---\n{}\n\n", ir.trim_end(), got.trim_end());
            cases += 1;
        }
        if bless {
            std::fs::write(&file, out).unwrap();
        }
    }
    assert!(cases > 5);
}
