//! The guest-error log: what a guest does wrong, noted without letting the guest fill a disk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many messages one call site may print before only every power of two is told.
const FREE_MESSAGES: u32 = 8;

type Hook = Box<dyn Fn(&std::fmt::Arguments<'_>) + Send + Sync>;
static HOOK: OnceLock<Hook> = OnceLock::new();

/// Sends guest errors to `hook` instead of the `log` crate. The first caller wins.
pub fn set_guest_error_hook(hook: impl Fn(&std::fmt::Arguments<'_>) + Send + Sync + 'static) {
    let _ = HOOK.set(Box::new(hook));
}

/// One place in the code that reports guest errors; made by [`guest_error!`](crate::guest_error).
pub struct GuestErrorSite {
    count: AtomicU32,
}

impl GuestErrorSite {
    /// A site that has told nothing yet.
    #[allow(clippy::new_without_default, reason = "made in statics by the macro only")]
    pub const fn new() -> Self {
        Self { count: AtomicU32::new(0) }
    }

    /// Tells of one more error, if the site has not told too much.
    #[cold]
    pub fn report(&self, message: std::fmt::Arguments<'_>) {
        let n = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if n > FREE_MESSAGES && !n.is_power_of_two() {
            return;
        }
        if n > FREE_MESSAGES {
            Self::emit(&format_args!("{message} ({n} times)"));
        } else {
            Self::emit(&message);
        }
    }

    fn emit(message: &std::fmt::Arguments<'_>) {
        match HOOK.get() {
            Some(hook) => hook(message),
            None => ::log::warn!(target: "guest_errors", "{message}"),
        }
    }
}

/// Notes something that the guest did wrong, rate limited per call site: `guest_error!("i8259: OCW2 {v:#04x} ...")`.
#[macro_export]
macro_rules! guest_error {
    ($($arg:tt)*) => {{
        static SITE: $crate::GuestErrorSite = $crate::GuestErrorSite::new();
        SITE.report(format_args!($($arg)*));
    }};
}
