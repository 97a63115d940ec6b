//! Saved state: versioned records of numbered fields.
//!
//! A record has a version and the lowest version that can read it. Fields are keyed by number, so fields
//! can be added and retired; each says whether a reader that does not know it may skip it. The encoding is
//! CBOR with fields in ascending order, so equal states give equal bytes: the state hash is taken of them.

use std::collections::BTreeMap;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

/// Why a record does not load.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoadError {
    /// The record needs a newer program.
    #[error("state of version {found} needs a newer program: this one reads up to version {supported}")]
    TooNew {
        /// Lowest version that can read the record.
        found: u16,
        /// What this program reads.
        supported: u16,
    },
    /// A field is missing.
    #[error("field {0} is missing")]
    Missing(u16),
    /// A field has the wrong type or an impossible value.
    #[error("field {0} has an impossible value")]
    Invalid(u16),
    /// A mandatory field is not known here.
    #[error("mandatory field {0} is not known to this program")]
    Unknown(u16),
    /// A device of the record does not exist, or one of the machine has no record.
    #[error("{0}")]
    Mismatch(String),
    /// The bytes are not a record.
    #[error("not a saved state: {0}")]
    Malformed(&'static str),
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Any unsigned number, booleans too.
    Unsigned(u64),
    /// A negative-capable number.
    Signed(i64),
    /// A byte string.
    Bytes(Vec<u8>),
    /// Text.
    Text(String),
    /// Several values.
    List(Vec<Value>),
    /// A record within the record.
    Record(Record),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    optional: bool,
    value: Value,
}

/// A saved state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: u16,
    minimum: u16,
    fields: BTreeMap<u16, Slot>,
}

impl Record {
    /// An empty record of this version, readable by programs that know this version.
    pub fn new(version: u16) -> Self {
        Self { version, minimum: version, fields: BTreeMap::new() }
    }

    /// Lets programs that know `minimum` read the record too.
    pub fn readable_by(mut self, minimum: u16) -> Self {
        self.minimum = minimum;
        self
    }

    /// Adds a mandatory field.
    pub fn with(mut self, number: u16, value: impl Field) -> Self {
        self.put(number, value);
        self
    }

    /// Adds a mandatory field in place.
    ///
    /// # Panics
    /// When the number is already taken, which is a mistake in the device's `save`.
    pub fn put(&mut self, number: u16, value: impl Field) {
        let old = self.fields.insert(number, Slot { optional: false, value: value.to_value() });
        assert!(old.is_none(), "record field {number} is written twice");
    }

    /// Adds a field that a reader may skip.
    pub fn put_optional(&mut self, number: u16, value: impl Field) {
        self.fields.insert(number, Slot { optional: true, value: value.to_value() });
    }

    /// Numbers of all fields, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        self.fields.keys().copied()
    }

    /// The raw value of a field; for tests and dumps.
    pub fn value(&self, number: u16) -> Option<&Value> {
        self.fields.get(&number).map(|s| &s.value)
    }

    /// Replaces a raw value; for tests that make hostile records.
    pub fn set_value(&mut self, number: u16, value: Value) {
        self.fields.insert(number, Slot { optional: false, value });
    }

    /// Removes a field; for tests that make hostile records.
    pub fn remove(&mut self, number: u16) {
        self.fields.remove(&number);
    }

    /// Starts reading, by a program that knows versions up to `supported`.
    pub fn read(&self, supported: u16) -> Result<Reader<'_>, LoadError> {
        if self.minimum > supported {
            return Err(LoadError::TooNew { found: self.minimum, supported });
        }
        Ok(Reader { record: self, seen: Vec::new() })
    }

    /// The version it was written with.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The encoded form; equal records give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_record(&mut Encoder::new(&mut out), self);
        out
    }

    /// Decodes what `encode` gave. Never panics and never allocates more than the input is long.
    pub fn decode(bytes: &[u8]) -> Result<Self, LoadError> {
        let mut d = Decoder::new(bytes);
        let record = decode_record(&mut d, 0).map_err(|_| LoadError::Malformed("bad encoding"))??;
        if d.position() != bytes.len() {
            return Err(LoadError::Malformed("bytes after the end"));
        }
        Ok(record)
    }
}

/// Reads a record's fields and notices those that nobody asked for.
pub struct Reader<'a> {
    record: &'a Record,
    seen: Vec<u16>,
}

impl Reader<'_> {
    /// The version that the record was written with.
    pub fn version(&self) -> u16 {
        self.record.version
    }

    /// A field that must be there.
    pub fn get<T: Field>(&mut self, number: u16) -> Result<T, LoadError> {
        self.seen.push(number);
        let slot = self.record.fields.get(&number).ok_or(LoadError::Missing(number))?;
        T::from_value(&slot.value).ok_or(LoadError::Invalid(number))
    }

    /// A field that older records lack.
    pub fn get_or<T: Field>(&mut self, number: u16, default: T) -> Result<T, LoadError> {
        self.seen.push(number);
        match self.record.fields.get(&number) {
            None => Ok(default),
            Some(slot) => T::from_value(&slot.value).ok_or(LoadError::Invalid(number)),
        }
    }

    /// A field that must be there and pass `check`.
    pub fn get_if<T: Field>(&mut self, number: u16, check: impl FnOnce(&T) -> bool) -> Result<T, LoadError> {
        let value = self.get(number)?;
        if check(&value) { Ok(value) } else { Err(LoadError::Invalid(number)) }
    }

    /// Refuses mandatory fields that were not read.
    pub fn finish(self) -> Result<(), LoadError> {
        let unknown = self.record.fields.iter().find(|(n, slot)| !slot.optional && !self.seen.contains(n));
        match unknown {
            Some((n, _)) => Err(LoadError::Unknown(*n)),
            None => Ok(()),
        }
    }
}

/// What can stand in a field.
pub trait Field: Sized {
    /// To the stored form.
    fn to_value(&self) -> Value;
    /// From the stored form; `None` when type or range do not fit.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! unsigned_field {
    ($($t:ty),*) => {$(impl Field for $t {
        fn to_value(&self) -> Value { Value::Unsigned(u64::from(*self)) }
        fn from_value(value: &Value) -> Option<Self> {
            match value { Value::Unsigned(v) => <$t>::try_from(*v).ok(), _ => None }
        }
    })*};
}
unsigned_field!(u8, u16, u32, u64);

impl Field for usize {
    fn to_value(&self) -> Value {
        Value::Unsigned(*self as u64)
    }
    fn from_value(value: &Value) -> Option<Self> {
        u64::from_value(value).and_then(|v| usize::try_from(v).ok())
    }
}

impl Field for bool {
    fn to_value(&self) -> Value {
        Value::Unsigned(u64::from(*self))
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Unsigned(0) => Some(false),
            Value::Unsigned(1) => Some(true),
            _ => None,
        }
    }
}

impl Field for i64 {
    fn to_value(&self) -> Value {
        Value::Signed(*self)
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Signed(v) => Some(*v),
            _ => None,
        }
    }
}

impl Field for i32 {
    fn to_value(&self) -> Value {
        Value::Signed(i64::from(*self))
    }
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).and_then(|v| i32::try_from(v).ok())
    }
}

impl Field for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(s) => Some(s.clone()),
            _ => None,
        }
    }
}

impl Field for Record {
    fn to_value(&self) -> Value {
        Value::Record(self.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Record(r) => Some(r.clone()),
            _ => None,
        }
    }
}

impl<T: Field> Field for Vec<T> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => items.iter().map(T::from_value).collect(),
            _ => None,
        }
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
    fn from_value(value: &Value) -> Option<Self> {
        Vec::<T>::from_value(value)?.try_into().ok()
    }
}

impl<T: Field> Field for std::collections::VecDeque<T> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
    fn from_value(value: &Value) -> Option<Self> {
        Vec::<T>::from_value(value).map(Into::into)
    }
}

impl<T: Field> Field for Option<T> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => match items.as_slice() {
                [] => Some(None),
                [one] => T::from_value(one).map(Some),
                _ => None,
            },
            _ => None,
        }
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn to_value(&self) -> Value {
        Value::List(vec![self.0.to_value(), self.1.to_value()])
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => match items.as_slice() {
                [a, b] => Some((A::from_value(a)?, B::from_value(b)?)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Byte strings, stored compactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Field for Bytes {
    fn to_value(&self) -> Value {
        Value::Bytes(self.0.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bytes(b) => Some(Self(b.clone())),
            _ => None,
        }
    }
}

type Out<'a> = Encoder<&'a mut Vec<u8>>;

/// Writing to a vector cannot fail.
const INFALLIBLE: &str = "a vector takes all writes";

fn encode_record(e: &mut Out<'_>, record: &Record) {
    e.array(3).and_then(|e| e.u16(record.version)).and_then(|e| e.u16(record.minimum)).expect(INFALLIBLE);
    e.map(record.fields.len() as u64).expect(INFALLIBLE);
    for (number, slot) in &record.fields {
        e.u16(*number).and_then(|e| e.array(2)).and_then(|e| e.bool(slot.optional)).expect(INFALLIBLE);
        encode_value(e, &slot.value);
    }
}

/// Tag of a nested record, so that it is not taken for a list.
const RECORD_TAG: u64 = 0x7265;
/// Tag of a signed number, so that a positive one is not taken for an unsigned one.
const SIGNED_TAG: u64 = 0x7369;
/// Nesting that no device of ours reaches: a bound for hostile input.
const MAX_DEPTH: u32 = 16;

fn encode_value(e: &mut Out<'_>, value: &Value) {
    match value {
        Value::Unsigned(v) => drop(e.u64(*v).expect(INFALLIBLE)),
        Value::Signed(v) => {
            e.tag(minicbor::data::Tag::new(SIGNED_TAG)).and_then(|e| e.i64(*v)).expect(INFALLIBLE);
        }
        Value::Bytes(b) => drop(e.bytes(b).expect(INFALLIBLE)),
        Value::Text(s) => drop(e.str(s).expect(INFALLIBLE)),
        Value::List(items) => {
            e.array(items.len() as u64).expect(INFALLIBLE);
            items.iter().for_each(|item| encode_value(e, item));
        }
        Value::Record(r) => {
            e.tag(minicbor::data::Tag::new(RECORD_TAG)).expect(INFALLIBLE);
            encode_record(e, r);
        }
    }
}

type Decoded<T> = Result<Result<T, LoadError>, minicbor::decode::Error>;

fn decode_record(d: &mut Decoder<'_>, depth: u32) -> Decoded<Record> {
    if depth > MAX_DEPTH {
        return Ok(Err(LoadError::Malformed("nested too deeply")));
    }
    if d.array()? != Some(3) {
        return Ok(Err(LoadError::Malformed("not a record")));
    }
    let mut record = Record { version: d.u16()?, minimum: d.u16()?, fields: BTreeMap::new() };
    let Some(len) = d.map()? else { return Ok(Err(LoadError::Malformed("open-ended map"))) };
    for _ in 0..len {
        let number = d.u16()?;
        if d.array()? != Some(2) {
            return Ok(Err(LoadError::Malformed("bad field")));
        }
        let optional = d.bool()?;
        let value = match decode_value(d, depth + 1)? {
            Ok(value) => value,
            Err(e) => return Ok(Err(e)),
        };
        if record.fields.insert(number, Slot { optional, value }).is_some() {
            return Ok(Err(LoadError::Malformed("field twice")));
        }
    }
    Ok(Ok(record))
}

fn decode_value(d: &mut Decoder<'_>, depth: u32) -> Decoded<Value> {
    if depth > MAX_DEPTH {
        return Ok(Err(LoadError::Malformed("nested too deeply")));
    }
    Ok(Ok(match d.datatype()? {
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => Value::Unsigned(d.u64()?),
        Type::Bytes => Value::Bytes(d.bytes()?.to_vec()),
        Type::String => Value::Text(d.str()?.to_owned()),
        Type::Array => {
            let Some(len) = d.array()? else { return Ok(Err(LoadError::Malformed("open-ended list"))) };
            let mut items = Vec::new();
            for _ in 0..len {
                match decode_value(d, depth + 1)? {
                    Ok(item) => items.push(item),
                    Err(e) => return Ok(Err(e)),
                }
            }
            Value::List(items)
        }
        Type::Tag => match d.tag()?.as_u64() {
            RECORD_TAG => match decode_record(d, depth + 1)? {
                Ok(r) => Value::Record(r),
                Err(e) => return Ok(Err(e)),
            },
            SIGNED_TAG => Value::Signed(d.i64()?),
            _ => return Ok(Err(LoadError::Malformed("unknown tag"))),
        },
        _ => return Ok(Err(LoadError::Malformed("unknown type"))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record::new(2)
            .with(1, 7u8)
            .with(2, true)
            .with(3, vec![1u32, 2, 3])
            .with(4, Bytes(vec![9, 8]))
            .with(5, Some(4u64))
            .with(6, -3i64)
            .with(7, 3i64)
            .with(8, Record::new(1).with(1, "text".to_owned()))
            .with(9, [(1u16, false)])
    }

    #[test]
    fn a_record_survives_encoding() {
        let bytes = sample().encode();
        assert_eq!(Record::decode(&bytes).unwrap(), sample());
    }

    #[test]
    fn a_newer_minimum_is_refused_and_an_older_one_read() {
        let record = Record::new(5).readable_by(3);
        assert!(record.read(3).is_ok());
        assert_eq!(record.read(2).err(), Some(LoadError::TooNew { found: 3, supported: 2 }));
    }

    #[test]
    fn unknown_mandatory_fields_refuse_and_optional_ones_are_skipped() {
        let mut record = Record::new(1).with(1, 1u8);
        record.put_optional(2, 5u8);
        let mut reader = record.read(1).unwrap();
        assert_eq!(reader.get::<u8>(1), Ok(1));
        assert_eq!(reader.finish(), Ok(()));
        record.put(3, 0u8);
        let mut reader = record.read(1).unwrap();
        assert_eq!(reader.get::<u8>(1), Ok(1));
        assert_eq!(reader.finish(), Err(LoadError::Unknown(3)));
    }

    #[test]
    fn a_value_out_of_range_is_an_error_not_a_wrap() {
        let record = Record::new(1).with(1, 300u16);
        assert_eq!(record.read(1).unwrap().get::<u8>(1), Err(LoadError::Invalid(1)));
        assert_eq!(record.read(1).unwrap().get::<bool>(1), Err(LoadError::Invalid(1)));
    }

    #[test]
    fn truncated_and_altered_bytes_never_panic() {
        let bytes = sample().encode();
        for end in 0..bytes.len() {
            assert!(Record::decode(&bytes[..end]).is_err());
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                let _ = Record::decode(&bad);
            }
        }
        assert!(Record::decode(&[0x81; 10_000]).is_err());
    }
}
