//! Hosts on which `-accel kvm` cannot work: one line that says why and what to do, and exit code 1.
//!
//! They are made of this host by a mount namespace, another user, and a seccomp filter (by a few lines of Python);
//! where those cannot be had, the test says so.

use std::path::Path;
use std::process::{Command, Output};

use anura_accel_kvm::Kvm;
use anura_tests::{anura, need, tool};

const ARGS: &str = "-accel kvm -nodefaults -display none -vga none -m 16";

/// Runs a line of shell in a mount namespace of its own.
fn in_namespace(line: &str) -> Option<Output> {
    let unshare = tool("unshare")?;
    let works =
        Command::new(&unshare).args(["--mount", "sh", "-c", "mount -t tmpfs none /mnt"]).output().ok()?;
    if !works.status.success() {
        return None;
    }
    Command::new(unshare).args(["--mount", "sh", "-c", line]).output().ok()
}

fn kvm() -> Option<()> {
    Kvm::default().kind().ok().map(drop)
}

/// Exit code 1 and one line with all of these words.
fn refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

/// A copy of the program where any user can run it.
fn copy(program: &Path) -> (tempfile::TempDir, String) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("anura");
    std::fs::copy(program, &copy).unwrap();
    let name = copy.display().to_string();
    (dir, name)
}

#[test]
fn without_the_device_the_user_is_told_to_load_the_module() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    let program = program.display();
    let line = format!("mount -t tmpfs none /dev && exec {program} {ARGS} -S");
    let output = need!(in_namespace(&line), "no mount namespace can be made here");
    refused(&output, &["/dev/kvm does not exist", "kvm_intel", "-accel interp"]);
}

#[test]
fn without_rights_the_user_is_told_the_group() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    need!(tool("setpriv"), "there is no setpriv");
    let (_dir, program) = copy(&program);
    let line = format!(
        "mount -t tmpfs none /mnt && cp -a /dev/kvm /mnt && chmod 600 /mnt/kvm && mount --bind /mnt/kvm /dev/kvm && \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups {program} {ARGS} -S"
    );
    let output = need!(in_namespace(&line), "no mount namespace can be made here");
    refused(&output, &["no permission for /dev/kvm", "usermod -aG kvm"]);
}

/// Makes one ioctl fail with EFAULT: this number, and this argument if one is given.
const FILTER: &str = r#"
import ctypes, os, struct, sys
number, argument = int(sys.argv[1], 0), int(sys.argv[2], 0)
ins = lambda code, jt, jf, k: struct.pack('HBBI', code, jt, jf, k)
LOAD, EQ, RET = 0x20, 0x15, 0x06
fail, allow = ins(RET, 0, 0, 0x00050000 | 14), ins(RET, 0, 0, 0x7fff0000)
code = [ins(LOAD, 0, 0, 0), ins(EQ, 0, 5, 16), ins(LOAD, 0, 0, 24), ins(EQ, 0, 3, number),
        ins(LOAD, 0, 0, 32), ins(EQ, 0, 1, argument), fail, allow]
if argument == 0xffffffff:
    code = [ins(LOAD, 0, 0, 0), ins(EQ, 0, 3, 16), ins(LOAD, 0, 0, 24), ins(EQ, 0, 1, number), fail, allow]
program = b''.join(code)
buffer = ctypes.create_string_buffer(program, len(program))
class Fprog(ctypes.Structure):
    _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
fprog = Fprog(len(code), ctypes.cast(buffer, ctypes.c_void_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, 'seccomp'
os.execv(sys.argv[3], sys.argv[3:])
"#;

/// Runs the program with that ioctl failing.
fn with_failing(program: &Path, number: u32, argument: u32) -> Option<Output> {
    let python = tool("python3")?;
    let output = Command::new(python)
        .args(["-c", FILTER, &number.to_string(), &argument.to_string()])
        .arg(program)
        .args(ARGS.split(' '))
        .arg("-S")
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(output).filter(|_| !said.contains("Traceback"))
}

#[test]
fn a_kernel_that_does_not_run_guests_is_found_out_by_the_probe_guest() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let output = need!(with_failing(&program, 0xae80, u32::MAX), "no Python with seccomp here");
    refused(&output, &["a probe guest does not run", "Bad address"]);
}

#[test]
fn a_capability_that_is_missing_is_named() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    // KVM_CHECK_EXTENSION of KVM_CAP_READONLY_MEM.
    let output = need!(with_failing(&program, 0xae03, 81), "no Python with seccomp here");
    refused(&output, &["lacks read-only memory slots", "-accel interp"]);
}

#[test]
fn each_ioctl_of_the_start_that_fails_is_named() {
    let program = need!(anura(), "the anura program is not built; run cargo xtask test");
    need!(kvm(), "there is no usable /dev/kvm");
    let calls = [(0xae01, "probe guest"), (0xae41, "probe guest"), (0x4008_ae90, "KVM_SET_CPUID2")];
    for (number, words) in calls {
        let output = need!(with_failing(&program, number, u32::MAX), "no Python with seccomp here");
        refused(&output, &["kvm", words, "Bad address"]);
    }
}
