//! The engine's intermediate language: linear, one block, 16 bytes per operation.
//!
//! The front end writes it, the passes of `opt` shorten it, the interpreter lowers and runs it. Its text form
//! ([`mod@print`], [`parse`]) is the language of the file tests; [`verify`] checks a block after every pass in debug builds.
//! All of them work from the one table in [`op`], so an operation unknown to any of them does not compile.

pub mod help;
pub mod op;
pub mod parse;
pub mod print;
pub mod verify;

pub use help::Help;
pub use op::{Attr, Block, Call, Cond, FlagsForm, Insn, Op, Opaque, Opcode, Ref, Ty};
