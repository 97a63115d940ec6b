//! Tests of the clock.

use super::*;
use crate::DeviceCell;

struct Log {
    fired: Vec<(u8, u64)>,
    a: Timer,
    b: Timer,
}

fn two_timers(clock: &Clock) -> DeviceCell<Log> {
    DeviceCell::new_cyclic(|me| Log {
        fired: Vec::new(),
        a: clock.timer(me, |log: &mut Log, now| log.fired.push((b'a', now))),
        b: clock.timer(me, |log: &mut Log, now| log.fired.push((b'b', now))),
    })
}

#[test]
fn timers_fire_in_order_of_deadline_then_of_arming() {
    let clock = Clock::stepped();
    let log = two_timers(&clock);
    {
        let log = log.lock();
        log.b.arm(10);
        log.a.arm(10);
    }
    clock.advance(20);
    assert_eq!(log.lock().fired, [(b'b', 10), (b'a', 10)]);
    assert_eq!(clock.now(), 20);
}

#[test]
fn a_cancelled_or_moved_timer_does_not_fire_at_its_old_time() {
    let clock = Clock::stepped();
    let log = two_timers(&clock);
    log.lock().a.arm(5);
    log.lock().a.arm(50);
    log.lock().b.arm(6);
    log.lock().b.cancel();
    clock.advance(10);
    assert!(log.lock().fired.is_empty());
    assert_eq!(clock.next_deadline(), Some(50));
}

#[test]
fn a_restored_timer_keeps_its_place_among_equal_deadlines() {
    let clock = Clock::stepped();
    let log = two_timers(&clock);
    log.lock().b.arm(10);
    log.lock().a.arm(10);
    let (a, b) = {
        let log = log.lock();
        (log.a.state(), log.b.state())
    };
    let saved = clock.save();

    let other = Clock::stepped();
    let copy = two_timers(&other);
    other.load(&saved).unwrap();
    copy.lock().a.restore(a);
    copy.lock().b.restore(b);
    other.advance(10);
    assert_eq!(copy.lock().fired, [(b'b', 10), (b'a', 10)]);
}

#[test]
fn counted_time_is_instructions_plus_skipped_idle_time() {
    let clock = Clock::counted(3);
    clock.set_instructions(100);
    assert_eq!(clock.now(), 800);
    assert_eq!(clock.instructions_until(801), 1);
    clock.warp_to(1000);
    assert_eq!(clock.now(), 1000);
    clock.set_instructions(101);
    assert_eq!(clock.now(), 1008);
    let copy = Clock::counted(3);
    copy.load(&clock.save()).unwrap();
    assert_eq!((copy.now(), copy.instructions()), (1008, 101));
}

#[test]
fn paused_real_time_stands_still() {
    let clock = Clock::real();
    assert_eq!(clock.now(), 0);
    clock.resume();
    while clock.now() == 0 {}
    clock.pause();
    let at = clock.now();
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(clock.now(), at);
}

#[test]
fn arming_an_earlier_deadline_calls_the_hook() {
    use std::sync::atomic::AtomicUsize;
    let clock = Clock::stepped();
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    clock.on_earlier(move || {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    let log = two_timers(&clock);
    log.lock().a.arm(100);
    log.lock().b.arm(200);
    log.lock().b.arm(50);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[test]
fn a_timer_dies_with_its_device() {
    let clock = Clock::stepped();
    let log = two_timers(&clock);
    log.lock().a.arm(5);
    drop(log);
    assert_eq!(clock.next_deadline(), None);
    clock.advance(10);
}

#[test]
fn time_does_not_go_back_when_a_counter_takes_over() {
    fn thirds() -> u64 {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64 * 3
    }
    let clock = Clock::real();
    clock.resume();
    let mut last = clock.now();
    for _ in 0..1000 {
        let learnt = clock.learn_counter(thirds).is_some();
        let now = clock.now();
        assert!(now >= last);
        last = now;
        if learnt {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    clock.pause();
    assert!(clock.now() >= last);
    assert!(Clock::stepped().learn_counter(thirds).is_none());
}

#[test]
fn a_thread_that_waits_for_a_near_deadline_fires_the_timer() {
    let clock = Clock::real();
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = calls.clone();
    clock.on_earlier(move || {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    let log = two_timers(&clock);
    let sleep = std::thread::sleep;
    // Nothing is armed; time stands; the deadline is far away.
    assert!(!clock.wait_if_near(Duration::MAX, sleep));
    log.lock().a.arm(1);
    assert!(!clock.wait_if_near(Duration::MAX, sleep));
    clock.resume();
    log.lock().a.arm(clock.now() + 3_600_000_000_000);
    assert!(!clock.wait_if_near(Duration::from_millis(1), sleep));

    let at = clock.now() + 2_000_000;
    log.lock().a.arm(at);
    assert_eq!(clock.look_at(), Some(at));
    let woken = calls.load(Ordering::Relaxed);
    let wait = |ahead| {
        // Others have time meanwhile.
        assert_eq!(clock.look_at(), Some(at + GRACE));
        sleep(ahead);
    };
    assert!(clock.wait_if_near(Duration::from_secs(1), wait));
    assert_eq!(clock.next_deadline(), None);
    assert!(clock.now() >= at);

    // Who is woken too early leaves the deadline to others again.
    let at = clock.now() + 3_600_000_000_000;
    log.lock().a.arm(at);
    assert!(clock.wait_if_near(Duration::MAX, |_| ()));
    assert_eq!(clock.look_at(), Some(at));
    assert_eq!(calls.load(Ordering::Relaxed), woken + 2);
}
