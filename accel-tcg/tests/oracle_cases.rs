//! Runs again what the comparison with the host once found: `filetests/oracle/*.case`.
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use anura_accel_tcg::oracle::file;

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
        for thunks in [true, false] {
            match file::replay(&text, thunks) {
                Ok(None) => {}
                Ok(Some(text)) => wrong += &format!("{} (thunks {thunks}):{text}\n", path.display()),
                Err(e) => wrong += &format!("{} (thunks {thunks}): {e}\n", path.display()),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
