//! The decoder with the guest's habits set.

use super::effects::Features;
use crate::mode::key;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Why bytes are no instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// More bytes are needed than were given.
    More,
    /// Longer than 15 bytes: #GP.
    TooLong,
    /// #UD.
    Invalid,
}

/// A decoder of what begins with these bytes.
pub fn decoder<'a>(bytes: &'a [u8], rip: u64, mode: u32, features: &Features) -> Decoder<'a> {
    let bits = match (mode & key::L64 != 0, mode & key::CODE32 != 0) {
        (true, _) => 64,
        (_, true) => 32,
        _ => 16,
    };
    let mut options = DecoderOptions::NO_WBNOINVD;
    let mut option = |on: bool, o: u32| options |= if on { o } else { 0 };
    option(features.amd, DecoderOptions::AMD);
    option(!features.tzcnt, DecoderOptions::NO_MPFX_0FBC);
    option(!features.lzcnt, DecoderOptions::NO_MPFX_0FBD);
    option(!features.lahf64, DecoderOptions::NO_LAHF_SAHF_64);
    Decoder::with_ip(bits, bytes, rip, options)
}

/// Decodes one instruction at the start of `bytes` (of which at most 15 are looked at).
pub fn decode(bytes: &[u8], rip: u64, mode: u32, features: &Features) -> Result<Instruction, DecodeError> {
    let window = &bytes[..bytes.len().min(15)];
    let mut d = decoder(window, rip, mode, features);
    let i = d.decode();
    if !i.is_invalid() {
        return Ok(i);
    }
    match d.last_error() {
        DecoderError::NoMoreBytes if window.len() < 15 => Err(DecodeError::More),
        DecoderError::NoMoreBytes => Err(DecodeError::TooLong),
        _ if window.len() == 15 && d.position() >= 15 => Err(DecodeError::TooLong),
        _ => Err(DecodeError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Mnemonic;

    #[test]
    fn hidden_features_change_the_meaning_of_their_prefix() {
        let mut f = Features::all();
        let tz = [0xf3, 0x0f, 0xbc, 0xc1];
        let lz = [0xf3, 0x0f, 0xbd, 0xc1];
        let m = |f: &Features, b: &[u8]| decode(b, 0, key::L64, f).unwrap().mnemonic();
        assert_eq!((m(&f, &tz), m(&f, &lz)), (Mnemonic::Tzcnt, Mnemonic::Lzcnt));
        f.tzcnt = false;
        f.lzcnt = false;
        assert_eq!((m(&f, &tz), m(&f, &lz)), (Mnemonic::Bsf, Mnemonic::Bsr));
    }

    #[test]
    fn the_three_failures_are_told_apart() {
        let f = Features::all();
        let d = |b: &[u8]| decode(b, 0, key::L64, &f).map(|i| i.len());
        assert_eq!(d(&[0x48, 0x8b]), Err(DecodeError::More));
        assert_eq!(d(&[0x66; 15]), Err(DecodeError::TooLong));
        assert_eq!(d(&[0x06, 0x90]), Err(DecodeError::Invalid));
        assert_eq!(d(&[0xf0, 0x89, 0xc0]), Err(DecodeError::Invalid));
        assert_eq!(d(&[0x90, 0x90]), Ok(1));
    }
}
