//! A short run of the comparison with the host's own processor; `cargo xtask fuzz cpu` is the long one.
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use anura_accel_tcg::oracle::generate::Width;
use anura_accel_tcg::oracle::{Oracle, Report, Sides};

#[test]
fn every_engine_agrees_with_the_host_on_every_encoding() {
    if !std::arch::is_x86_feature_detected!("avx") {
        println!("skipped: the oracle needs a host with AVX");
        return;
    }
    let mut oracle = Oracle::new(0x0dd_5eed, Sides::All).expect("the runner's fixed addresses are free");
    let mut report = Report::default();
    for width in [Width::Bits64, Width::Bits32] {
        oracle.set_width(width).expect("the runner's pages can be protected");
        oracle.run(100_000, None, &mut report, |_| false).expect("the runner's pages can be protected");
    }
    assert!(report.cases > 50_000 && report.encodings.len() > 1_000, "the generator drew too little");
    assert_eq!(report.differences, 0, "{}", report.examples.join("\n"));
}
