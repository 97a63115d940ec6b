//! Single values: switches, numbers, sizes, dates, UUIDs.

/// on or off.
pub(crate) fn switch(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

/// A number, decimal or with `0x`.
pub(crate) fn number(key: &str, text: &str) -> Result<u64, String> {
    plain(text).ok_or_else(|| format!("Parameter '{key}' expects a number"))
}

fn plain(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}

/// A number of bytes: an optional fraction, a suffix k, M, G, T, P, E or B, and a shift that holds
/// without a suffix.
pub(crate) fn size(key: &str, text: &str, default_shift: u32) -> Result<u64, String> {
    let fail = || {
        format!(
            "Parameter '{key}' expects a non-negative number below 2^64, with an optional suffix k, M, G, T, P or E"
        )
    };
    let (digits, shift) = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('b') if !text.starts_with("0x") => (&text[..text.len() - 1], 0),
        Some('k') => (&text[..text.len() - 1], 10),
        Some('m') => (&text[..text.len() - 1], 20),
        Some('g') => (&text[..text.len() - 1], 30),
        Some('t') => (&text[..text.len() - 1], 40),
        Some('p') => (&text[..text.len() - 1], 50),
        Some('e') if !text.starts_with("0x") => (&text[..text.len() - 1], 60),
        _ => (text, default_shift),
    };
    if let Some((whole, fraction)) = digits.split_once('.') {
        let ok = !fraction.is_empty() && fraction.len() <= 15 && fraction.bytes().all(|b| b.is_ascii_digit());
        let whole = plain(whole).filter(|_| ok).ok_or_else(fail)?;
        let scale = 10u128.pow(fraction.len() as u32);
        let part = fraction.parse::<u128>().map_err(|_| fail())?;
        let bytes = (u128::from(whole) << shift) + (part << shift) / scale;
        return u64::try_from(bytes).map_err(|_| fail());
    }
    let n = plain(digits).ok_or_else(fail)?;
    n.checked_mul(1 << shift).ok_or_else(fail)
}

/// `2006-06-17` or `2006-06-17T16:01:21`, as seconds since 1970.
pub(crate) fn date(text: &str) -> Option<i64> {
    let (day, time) = text.split_once('T').unwrap_or((text, "0:0:0"));
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let parts: Vec<i64> = text
            .split(by)
            .map(|p| p.parse().ok().filter(|_| p.bytes().all(|b| b.is_ascii_digit())))
            .collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [y, m, d] = numbers(day, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let ok = (1970..=9999).contains(&y) && (1..=12).contains(&m) && hour < 24 && minute < 60 && second < 60;
    if !ok || d < 1 || d > days[m as usize - 1] {
        return None;
    }
    let years: i64 =
        (1970..y).map(|y| if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) { 366 } else { 365 }).sum();
    let day_of_year: i64 = days[..m as usize - 1].iter().sum::<i64>() + d - 1;
    Some((years + day_of_year) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// A UUID in its usual form, lower case.
pub(crate) fn uuid(text: &str) -> Option<String> {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    let hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    (lengths == [8, 4, 4, 4, 12] && hex).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_fractions_and_a_bound() {
        let ok = |t: &str| size("size", t, 20).unwrap();
        assert_eq!(
            [ok("512"), ok("1.5G"), ok("64k"), ok("0x10"), ok("7B")],
            [512 << 20, 3 << 29, 65536, 16 << 20, 7]
        );
        for bad in ["", "abc", "-1", "1x", "17592186044416E", "1.", "+5", "1.5.5G", "0x"] {
            assert!(size("size", bad, 20).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_are_real_days() {
        assert_eq!(date("1970-01-02"), Some(86_400));
        assert_eq!(date("2006-06-17T16:01:21"), Some(1_150_560_081));
        assert_eq!(date("2024-02-29"), Some(1_709_164_800));
        for bad in ["2023-02-29", "2006-13-01", "2006-6", "x", "2006-06-17T24:00:00", "2006-06-+7"] {
            assert_eq!(date(bad), None, "{bad}");
        }
    }
}
