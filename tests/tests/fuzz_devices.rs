//! A short run of the device fuzzer, always the same: no panic, no difference, registers reached.

use anura_tests::device_fuzz::Fuzz;

#[test]
fn random_traffic_breaks_nothing_and_reaches_nearly_every_register() {
    let mut fuzz = Fuzz::new(42);
    for _ in 0..12 {
        (0..5_000).for_each(|_| fuzz.step());
        fuzz.round_trip().unwrap();
        fuzz.reset();
    }
    for (name, coverage) in &fuzz.coverage {
        let (reached, total) = (coverage.reached() as u64, coverage.total());
        assert!(reached * 10 >= total * 9, "{name}: {reached} of {total} registers");
    }
}
