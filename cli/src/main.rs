//! The `anura` program.

#![forbid(unsafe_code)]

fn main() {
    let mut arguments: Vec<String> = std::env::args().collect();
    let name = if arguments.is_empty() { String::new() } else { arguments.remove(0) };
    // Under the name of QEMU's 32-bit program it is a 32-bit PC, unless another processor is asked for.
    if name.ends_with("qemu-system-i386") {
        arguments.splice(0..0, ["-cpu".to_owned(), "qemu32".to_owned()]);
    }
    let code = match arguments.first().map(String::as_str) {
        Some("doctor") => anura_cli::doctor::main(&arguments[1..]),
        _ => anura_cli::run::main(&arguments),
    };
    std::process::exit(code);
}
