//! How far the host's time zone is from UTC, for `-rtc base=localtime`.

use std::process::Command;

/// Seconds that local time is ahead of UTC at `unix` seconds since 1970; 0 where the host does not say.
///
/// The zone's rules are the C library's business, which safe code reaches through `date`.
pub fn utc_offset(unix: i64) -> i64 {
    let output = Command::new("date").arg("-d").arg(format!("@{unix}")).arg("+%z").output();
    let Ok(output) = output else { return 0 };
    parse(String::from_utf8_lossy(&output.stdout).trim()).unwrap_or(0)
}

/// `+hhmm` or `-hhmm` in seconds.
fn parse(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_at_checked(2)?;
    Some(sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn offsets_parse_on_both_sides_of_utc() {
        assert_eq!(parse("+0530"), Some(19_800));
        assert_eq!(parse("-0800"), Some(-28_800));
        assert_eq!(parse("UTC"), None);
    }
}
