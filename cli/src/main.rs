//! The `anura` program.

#![forbid(unsafe_code)]

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(anura_cli::run::main(&arguments));
}
