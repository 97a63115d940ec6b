//! The stream itself: frames of CBOR.

use std::io::{Read, Write};

use anura_machine::{Machine, States};
use anura_memory::RamBlock;
use anura_vmcore::Record;
use minicbor::{Decoder, Encoder};

use crate::MigrationError;

const FORMAT: &str = "anura-machine";
const VERSION: u16 = 1;
/// RAM is looked at and stored in pieces of this many bytes.
const PIECE: u64 = 1 << 16;
/// Longest frame: a piece of RAM, or a large device's record.
const LONGEST_FRAME: u32 = 4 << 20;

const INFALLIBLE: &str = "a vector takes all writes";

struct Writer<'a> {
    out: &'a mut dyn Write,
    hash: blake3::Hasher,
}

impl Writer<'_> {
    fn frame(&mut self, make: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Result<(), MigrationError> {
        let mut body = Vec::new();
        make(&mut Encoder::new(&mut body));
        let length = (body.len() as u32).to_le_bytes();
        self.hash.update(&length);
        self.hash.update(&body);
        self.out
            .write_all(&length)
            .and_then(|()| self.out.write_all(&body))
            .map_err(|source| MigrationError::Host { what: "writing the saved machine".into(), source })
    }
}

/// Writes the stopped machine.
pub fn save(machine: &Machine, out: &mut dyn Write) -> Result<(), MigrationError> {
    let mut w = Writer { out, hash: blake3::Hasher::new() };
    w.frame(|e| {
        e.array(2).and_then(|e| e.str(FORMAT)).and_then(|e| e.u16(VERSION)).expect(INFALLIBLE);
    })?;
    for (path, record) in machine.save_states() {
        w.frame(|e| {
            e.array(3).and_then(|e| e.str("state")).and_then(|e| e.str(&path)).expect(INFALLIBLE);
            e.bytes(&record.encode()).expect(INFALLIBLE);
        })?;
    }
    for (index, block) in machine.ram_blocks_list().iter().enumerate() {
        w.frame(|e| {
            e.array(3).and_then(|e| e.str("block")).and_then(|e| e.str(block.name())).expect(INFALLIBLE);
            e.u64(block.len()).expect(INFALLIBLE);
        })?;
        let mut piece = vec![0; PIECE as usize];
        let mut at = 0;
        while at < block.len() {
            let len = (block.len() - at).min(PIECE) as usize;
            block.read(at, &mut piece[..len]);
            if piece[..len].iter().any(|b| *b != 0) {
                w.frame(|e| {
                    e.array(4)
                        .and_then(|e| e.str("ram"))
                        .and_then(|e| e.u32(index as u32))
                        .expect(INFALLIBLE);
                    e.u64(at).and_then(|e| e.bytes(&piece[..len])).expect(INFALLIBLE);
                })?;
            }
            at += len as u64;
        }
    }
    let hash = w.hash.finalize();
    w.frame(|e| {
        e.array(2).and_then(|e| e.str("end")).and_then(|e| e.bytes(hash.as_bytes())).expect(INFALLIBLE);
    })
}

struct Reader<'a> {
    input: &'a mut dyn Read,
    hash: blake3::Hasher,
}

impl Reader<'_> {
    /// The next frame's body, and the hash of all before it.
    fn frame(&mut self) -> Result<(Vec<u8>, blake3::Hash), MigrationError> {
        let short = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => MigrationError::Malformed("it ends in the middle"),
            _ => MigrationError::Host { what: "reading the saved machine".into(), source },
        };
        let before = self.hash.finalize();
        let mut length = [0; 4];
        self.input.read_exact(&mut length).map_err(short)?;
        let size = u32::from_le_bytes(length);
        if size > LONGEST_FRAME {
            return Err(MigrationError::Malformed("a frame is too long"));
        }
        let mut body = vec![0; size as usize];
        self.input.read_exact(&mut body).map_err(short)?;
        self.hash.update(&length);
        self.hash.update(&body);
        Ok((body, before))
    }
}

/// Which pieces of a block the stream brought.
struct Incoming {
    block: std::sync::Arc<RamBlock>,
    seen: Vec<bool>,
}

impl Incoming {
    /// Clears what the stream did not bring.
    fn finish(&self) {
        let mut piece = vec![0; PIECE as usize];
        for (n, _) in self.seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            let at = n as u64 * PIECE;
            let len = (self.block.len() - at).min(PIECE);
            self.block.read(at, &mut piece[..len as usize]);
            // Memory that was never touched stays so.
            if piece[..len as usize].iter().any(|b| *b != 0) {
                self.block.fill(at, len, 0);
            }
        }
    }
}

/// Reads a machine into the stopped `machine`, which must have been built with the same options.
pub fn load(machine: &Machine, input: &mut dyn Read) -> Result<(), MigrationError> {
    let bad = |_| MigrationError::Malformed("a frame does not decode");
    let mut r = Reader { input, hash: blake3::Hasher::new() };
    let (first, _) = r.frame()?;
    let mut d = Decoder::new(&first);
    if d.array().map_err(bad)? != Some(2) || d.str().map_err(bad)? != FORMAT {
        return Err(MigrationError::Malformed("it is of another format"));
    }
    let version = d.u16().map_err(bad)?;
    if version > VERSION {
        return Err(MigrationError::Mismatch(format!(
            "it has format version {version}, this program reads {VERSION}"
        )));
    }
    let own = machine.ram_blocks_list();
    let mut states: States = Vec::new();
    let mut blocks: Vec<Incoming> = Vec::new();
    loop {
        let (body, before) = r.frame()?;
        let mut d = Decoder::new(&body);
        d.array().map_err(bad)?;
        match d.str().map_err(bad)? {
            "state" => {
                let path = d.str().map_err(bad)?.to_owned();
                let record = Record::decode(d.bytes().map_err(bad)?)
                    .map_err(|source| anura_machine::MachineError::Load { device: path.clone(), source })?;
                states.push((path, record));
            }
            "block" => {
                let (name, len) = (d.str().map_err(bad)?, d.u64().map_err(bad)?);
                let block = own.get(blocks.len()).filter(|b| b.name() == name && b.len() == len);
                let block = block.ok_or_else(|| {
                    MigrationError::Mismatch(format!(
                        "it has memory {name} of {len} bytes, which is not here"
                    ))
                })?;
                let pieces = block.len().div_ceil(PIECE) as usize;
                blocks.push(Incoming { block: block.clone(), seen: vec![false; pieces] });
            }
            "ram" => {
                let index = d.u32().map_err(bad)? as usize;
                let at = d.u64().map_err(bad)?;
                let bytes = d.bytes().map_err(bad)?;
                let incoming =
                    blocks.get_mut(index).ok_or(MigrationError::Malformed("RAM of an unknown block"))?;
                if at % PIECE != 0 || bytes.len() as u64 > PIECE || !incoming.block.write(at, bytes) {
                    return Err(MigrationError::Malformed("RAM outside of its block"));
                }
                if let Some(seen) = incoming.seen.get_mut((at / PIECE) as usize) {
                    *seen = true;
                }
            }
            "end" => {
                if d.bytes().map_err(bad)? != before.as_bytes() {
                    return Err(MigrationError::Malformed("its checksum is wrong"));
                }
                break;
            }
            _ => return Err(MigrationError::Malformed("a frame of unknown kind")),
        }
    }
    if blocks.len() != own.len() {
        return Err(MigrationError::Mismatch(format!(
            "it has {} memories, this machine {}",
            blocks.len(),
            own.len()
        )));
    }
    blocks.iter().for_each(Incoming::finish);
    Ok(machine.load_states(&states)?)
}
