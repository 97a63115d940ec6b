//! Runs again what the comparison with the host once found: `filetests/oracle/*.case`.
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use anura_accel_tcg::oracle::file;
use anura_accel_tcg::oracle::guest::Runner;

#[test]
fn cases_that_once_differed_come_out_as_on_the_processor_that_found_them() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/filetests/oracle");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("the folder of cases")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "case"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {dir}");
    let mut wrong = String::new();
    for path in &files {
        let text = std::fs::read_to_string(path).expect("a text file");
        for runner in [Runner::Thunks, Runner::Portable, Runner::Jit] {
            match file::replay(&text, runner) {
                Ok(None) => {}
                Ok(Some(text)) => wrong += &format!("{}{}:{text}\n", path.display(), runner.name()),
                Err(e) => wrong += &format!("{}{}: {e}\n", path.display(), runner.name()),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
