//! `key=value,key=value` lists: a comma in a value is doubled, the first key may be implied, and a
//! list that begins with `{` is JSON.
//!
//! A reader takes the keys it knows; what is left at the end is an error that offers the nearest of
//! those asked for.

use crate::options::nearest;
use crate::options::value;

type Res<T> = Result<T, String>;

/// A parsed list.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyValues {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl KeyValues {
    /// Parses a list; its first word may stand for the value of `implied`.
    pub(crate) fn parse(text: &str, implied: Option<&str>) -> Res<Self> {
        if text.trim_start().starts_with('{') {
            return Self::from_json(text);
        }
        let mut pairs = Vec::new();
        for (i, (item, equals)) in split(text).into_iter().enumerate() {
            let pair = match (equals, implied) {
                (Some(0), _) => return Err(format!("Expected a name before '{item}'")),
                (Some(at), _) => (item[..at].to_owned(), item[at + 1..].to_owned()),
                (None, Some(key)) if i == 0 => (key.to_owned(), item),
                (None, _) if item.is_empty() => continue,
                // A bare word is a switch, and `no` before it turns it off, as old spellings do.
                (None, _) => match item.strip_prefix("no").filter(|k| OLD_NO_SWITCHES.contains(k)) {
                    Some(key) => (key.to_owned(), "off".to_owned()),
                    None => (item, "on".to_owned()),
                },
            };
            pairs.push(pair);
        }
        Ok(Self { pairs, known: vec![] })
    }

    fn from_json(text: &str) -> Res<Self> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| format!("JSON parse error, {e}"))?;
        let serde_json::Value::Object(map) = value else {
            return Err("JSON parse error, expected an object".into());
        };
        let mut pairs = Vec::new();
        flatten("", &serde_json::Value::Object(map), &mut pairs);
        Ok(Self { pairs, known: vec![] })
    }

    /// Takes a key; of several the last one counts.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        self.all(key).pop()
    }

    /// Takes a key as often as it is there.
    pub(crate) fn all(&mut self, key: &'static str) -> Vec<String> {
        self.known.push(key);
        let (mine, rest) = std::mem::take(&mut self.pairs).into_iter().partition(|(k, _)| k == key);
        self.pairs = rest;
        let mine: Vec<(String, String)> = mine;
        mine.into_iter().map(|(_, v)| v).collect()
    }

    /// Takes a key that must be there.
    pub(crate) fn needed(&mut self, key: &'static str) -> Res<String> {
        self.text(key).ok_or_else(|| format!("Parameter '{key}' is missing"))
    }

    /// Takes a switch.
    pub(crate) fn switch(&mut self, key: &'static str) -> Res<Option<bool>> {
        self.text(key).map(|v| value::switch(key, &v)).transpose()
    }

    /// Takes a switch whose other state is not there yet.
    pub(crate) fn only(&mut self, key: &'static str, state: bool, otherwise: &str) -> Res<()> {
        match self.switch(key)? {
            Some(s) if s != state => Err(format!("{key}={}: {otherwise}", if s { "on" } else { "off" })),
            _ => Ok(()),
        }
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, key: &'static str) -> Res<Option<u64>> {
        self.text(key).map(|v| value::number(key, &v)).transpose()
    }

    /// Takes a number of bytes.
    pub(crate) fn size(&mut self, key: &'static str) -> Res<Option<u64>> {
        self.text(key).map(|v| value::size(key, &v, 0)).transpose()
    }

    /// Takes one of some words.
    pub(crate) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Res<Option<T>> {
        let Some(v) = self.text(key) else { return Ok(None) };
        let found = words.iter().find(|(w, _)| *w == v).map(|(_, t)| *t);
        let takes = || words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
        found
            .map(Some)
            .ok_or_else(|| format!("Parameter '{key}' does not accept value '{v}'; use {}", takes()))
    }

    /// Takes all that is left.
    pub(crate) fn rest(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.pairs)
    }

    /// Refuses what nobody took.
    pub(crate) fn done(&self) -> Res<()> {
        let Some((key, _)) = self.pairs.first() else { return Ok(()) };
        let hint = match nearest(key, self.known.iter().copied()) {
            Some(near) => format!("; did you mean '{near}'?"),
            None if self.known.is_empty() => String::new(),
            None => format!("; it takes {}", self.known.join(", ")),
        };
        Err(format!("Invalid parameter '{key}'{hint}"))
    }
}

/// Switches that scripts still turn off by a `no` in front.
const OLD_NO_SWITCHES: [&str; 3] = ["wait", "delay", "server"];

/// Cuts at single commas and undoubles the others; with each item where its first `=` is.
fn split(text: &str) -> Vec<(String, Option<usize>)> {
    let mut items = vec![(String::new(), None)];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let n = items.len();
        let (item, equals) = &mut items[n - 1];
        match c {
            ',' if chars.peek() == Some(&',') => {
                chars.next();
                item.push(',');
            }
            ',' => items.push((String::new(), None)),
            _ => {
                if c == '=' && equals.is_none() {
                    *equals = Some(item.len());
                }
                item.push(c);
            }
        }
    }
    items
}

/// JSON members as pairs; members of members get dotted keys.
fn flatten(prefix: &str, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
    use serde_json::Value as J;
    let text = match value {
        J::Object(map) => {
            for (k, v) in map {
                let key = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
                flatten(&key, v, out);
            }
            return;
        }
        J::Array(list) => {
            for (i, v) in list.iter().enumerate() {
                flatten(&format!("{prefix}.{i}"), v, out);
            }
            return;
        }
        J::Bool(true) => "on".into(),
        J::Bool(false) => "off".into(),
        J::String(s) => s.clone(),
        J::Number(n) => n.to_string(),
        J::Null => String::new(),
    };
    out.push((prefix.to_owned(), text));
}

/// A value with its commas doubled, to write a list again.
pub(crate) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// The items of a list as key and value, for `-writeconfig`.
pub(crate) fn pairs(text: &str, implied: Option<&str>) -> Vec<(String, String)> {
    KeyValues::parse(text, implied).map(|mut kv| kv.rest()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, implied: Option<&str>) -> Vec<(String, String)> {
        KeyValues::parse(text, implied).unwrap().rest()
    }

    fn pair(k: &str, v: &str) -> (String, String) {
        (k.into(), v.into())
    }

    #[test]
    fn commas_double_first_keys_are_implied_and_bare_words_are_switches() {
        assert_eq!(parsed("a=b,,c=d,e", None), [pair("a", "b,c=d"), pair("e", "on")]);
        assert_eq!(
            parsed("sock,,et,server,nowait", Some("backend")),
            [pair("backend", "sock,et"), pair("server", "on"), pair("wait", "off")]
        );
        assert_eq!(parsed("x=1,x=2", Some("y")), [pair("x", "1"), pair("x", "2")]);
        assert!(KeyValues::parse("=1", None).is_err());
    }

    #[test]
    fn json_gives_the_same_pairs() {
        let json = r#"{"driver":"d","on":true,"n":5,"file":{"name":"a,b"}}"#;
        let want = [pair("driver", "d"), pair("on", "on"), pair("n", "5"), pair("file.name", "a,b")];
        assert_eq!(parsed(json, None), want);
        assert!(KeyValues::parse("{\"a\":", None).unwrap_err().starts_with("JSON parse error"));
    }

    #[test]
    fn what_nobody_takes_is_an_error_with_the_nearest_name() {
        let mut kv = KeyValues::parse("shift=1,slep=off", None).unwrap();
        assert_eq!((kv.number("shift"), kv.switch("sleep")), (Ok(Some(1)), Ok(None)));
        assert_eq!(kv.done().unwrap_err(), "Invalid parameter 'slep'; did you mean 'sleep'?");
    }
}
