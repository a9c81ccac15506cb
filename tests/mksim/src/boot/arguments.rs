//! The command line of a kernel, made of the one that was loaded.

use std::path::Path;

use super::{BootOrder, EMPTY_DIR, INITRD, UML_DIR};

/// What a kernel for real hardware knows nothing of, and this one would act on.
const RESERVED: [&str; 13] = [
    "mem=",
    "initrd=",
    "con",
    "ssl",
    "iomem=",
    "uml_dir=",
    "umid=",
    "hostfs=",
    "ubd",
    "eth",
    "vec",
    "virtio_uml.",
    "mode=",
];

pub(super) fn arguments(order: &BootOrder, link: i32, folder: &Path, heap: Option<&str>) -> Vec<String> {
    let mut argv = vec![
        format!("mem={}K", order.memory_bytes / 1024),
        // A panic ends the kernel at once, as in a spawned kernel.
        "panic=-1".into(),
        "sysrq_always_enabled".into(),
    ];
    if folder.join(INITRD).exists() {
        argv.push(format!("initrd={INITRD}"));
    }
    argv.extend(order.cmdline.split_ascii_whitespace().filter_map(word));
    argv.extend([
        "con=null".into(),
        "con0=fd:0,fd:1".into(),
        "ssl=null".into(),
        format!("ssl0=fd:{link}"),
        format!("uml_dir={UML_DIR}/"),
        "umid=k".into(),
        format!("hostfs={}", folder.join(EMPTY_DIR).display()),
        // For people who look at the process table.
        format!("tombolo.standin={}", order.name.replace(char::is_whitespace, "_")),
    ]);
    argv.extend(heap.map(|path| format!("iomem=mmapper,{path}")));
    argv
}

/// A word of the loaded command line, as this kernel takes it.
fn word(word: &str) -> Option<String> {
    if word.starts_with("console=mktty") {
        return Some("console=tty0".into());
    }
    let is_console = word.starts_with("console=") || word.starts_with("consoleblank=");
    let is_reserved = RESERVED.iter().any(|reserved| word.starts_with(reserved)) && !is_console;
    (!is_reserved).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_is_rewritten_and_nothing_of_the_host_can_be_named() {
        assert_eq!(word("console=mktty0").as_deref(), Some("console=tty0"));
        assert_eq!(word("rdinit=/init").as_deref(), Some("rdinit=/init"));
        assert_eq!(word("consoleblank=0").as_deref(), Some("consoleblank=0"));
        for taken in ["mem=4G", "con0=fd:5", "ubd0=/etc/passwd", "hostfs=/", "iomem=mmapper,/etc/passwd"] {
            assert_eq!(word(taken), None, "{taken}");
        }
    }
}
