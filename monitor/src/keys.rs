//! Names of keys for `sendkey`, with the set 1 codes of the keys they mean on a US keyboard.

/// Name and code. Rows of the keyboard are runs of codes, so each row of keys is one entry.
#[rustfmt::skip]
const ROWS: &[(u16, &[&str])] = &[
    (0x01, &["esc"]),
    (0x02, &["1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "minus", "equal", "backspace"]),
    (0x0f, &["tab", "q", "w", "e", "r", "t", "y", "u", "i", "o", "p", "bracket_left", "bracket_right", "ret", "ctrl"]),
    (0x1e, &["a", "s", "d", "f", "g", "h", "j", "k", "l", "semicolon", "apostrophe", "grave_accent", "shift"]),
    (0x2b, &["backslash", "z", "x", "c", "v", "b", "n", "m", "comma", "dot", "slash", "shift_r", "asterisk", "alt"]),
    (0x39, &["spc", "caps_lock", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "num_lock", "scroll_lock"]),
    (0x47, &["kp_7", "kp_8", "kp_9", "kp_subtract", "kp_4", "kp_5", "kp_6", "kp_add", "kp_1", "kp_2", "kp_3", "kp_0"]),
    (0x53, &["kp_decimal", "sysrq"]),
    (0x56, &["less", "f11", "f12"]),
    (0xe01c, &["kp_enter", "ctrl_r"]),
    (0xe035, &["kp_divide"]),
    (0xe037, &["print", "alt_r"]),
    (0xe047, &["home", "up", "pgup"]),
    (0xe04b, &["left"]),
    (0xe04d, &["right"]),
    (0xe04f, &["end", "down", "pgdn", "insert", "delete"]),
    (0xe05b, &["meta_l", "meta_r", "menu"]),
    (0xe11d, &["pause"]),
];

/// Other names of the same keys.
const ALIASES: [(&str, &str); 3] = [("kp_multiply", "asterisk"), ("compose", "menu"), ("enter", "ret")];

fn code(name: &str) -> Option<u16> {
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    if let Some(digits) = name.strip_prefix("0x") {
        return u16::from_str_radix(digits, 16).ok().filter(|code| (1..=0x7f).contains(&(code & 0xff)));
    }
    ROWS.iter().find_map(|(first, names)| {
        let at = names.iter().position(|n| *n == name)?;
        Some(first + at as u16)
    })
}

/// The keys of `ctrl-alt-delete` and the like, in order.
pub(crate) fn combination(names: &str) -> Result<Vec<u16>, String> {
    names.split('-').map(|name| code(name).ok_or_else(|| format!("invalid parameter: {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_codes_of_their_keys() {
        assert_eq!(combination("ctrl-alt-delete"), Ok(vec![0x1d, 0x38, 0xe053]));
        for (name, key) in [
            ("ret", 0x1c),
            ("shift", 0x2a),
            ("shift_r", 0x36),
            ("f1", 0x3b),
            ("scroll_lock", 0x46),
            ("f12", 0x58),
            ("pgdn", 0xe051),
            ("right", 0xe04d),
            ("alt_r", 0xe038),
            ("0x1e", 0x1e),
            ("0xe048", 0xe048),
        ] {
            assert_eq!(combination(name), Ok(vec![key]), "{name}");
        }
        assert_eq!(combination("a-nokey"), Err("invalid parameter: nokey".into()));
    }
}
