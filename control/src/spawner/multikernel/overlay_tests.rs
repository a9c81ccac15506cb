use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn name() -> InstanceName {
    "web".parse().unwrap()
}

fn web(cpus: impl IntoIterator<Item = u32>) -> Intent {
    Intent::Create(NewInstance {
        name: name(),
        id: 7.try_into().unwrap(),
        memory_bytes: 2 << 30,
        cpus: cpus.into_iter().map(PhysicalCpu).collect(),
    })
}

fn function() -> PciAddress {
    "0000:3b:00.1".parse().unwrap()
}

fn pool_device(alias: Option<&str>) -> Intent {
    Intent::PoolDeviceAdd { function: function(), alias: alias.map(|alias| alias.parse().unwrap()) }
}

fn device_of_web(change: Change) -> Intent {
    Intent::InstanceDevice { name: name(), change, function: function() }
}

/// Environment variable: the program dtc, where it is not on the path.
const DTC: &str = "TOMBOLO_DTC";
/// Environment variable: set (by `cargo xtask test`, where dtc can be had) to make it a failure that there is none.
const REQUIRE_DTC: &str = "TOMBOLO_REQUIRE_DTC";

/// What the kernel's developers read device trees with, made to write what it has read. `None` (said loudly) where it is not installed.
///
/// # Panics
/// When it refuses the tree, and when it is missing and [`REQUIRE_DTC`] is set.
fn by_dtc(blob: &[u8], format: &str) -> Option<Vec<u8>> {
    use std::io::Write as _;
    static SAID: std::sync::Once = std::sync::Once::new();
    let program = std::env::var_os(DTC).unwrap_or_else(|| "dtc".into());
    let mut dtc = Command::new(&program);
    dtc.args(["-q", "-I", "dtb", "-O", format, "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut dtc = match dtc.spawn() {
        Ok(dtc) => dtc,
        Err(error) => {
            let program = program.display();
            assert!(
                std::env::var_os(REQUIRE_DTC).is_none(),
                "{program} is required and does not run: {error}"
            );
            // Once, and not by `eprintln!`: the test harness would swallow it.
            SAID.call_once(|| {
                let what = format!("SKIPPED in part {}: {program} does not run: {error}", module_path!());
                let _ = writeln!(std::io::stderr(), "{what}");
            });
            return None;
        }
    };
    dtc.stdin.take().unwrap().write_all(blob).unwrap();
    let output = dtc.wait_with_output().unwrap();
    assert!(output.status.success(), "dtc refuses it");
    Some(output.stdout)
}

/// The same as the text of a source.
fn as_dtc_reads_it(blob: &[u8]) -> Option<String> {
    by_dtc(blob, "dts").map(|text| String::from_utf8(text).unwrap())
}

fn tree(blob: &[u8]) -> DeviceTree {
    DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(blob).unwrap())
}

#[test]
fn new_instance_is_asked_for_as_the_kernels_documents_say() {
    let blob = web([4, 6]).overlay("tombolo:1").unwrap();
    let text = tree(&blob).to_string();
    for wanted in [
        "compatible = \"linux,multikernel-overlay\"",
        "mk,resources = \"tombolo:1\"",
        "target-path = \"/instances\"",
        "instance-name = \"web\"",
        "instance-create",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    let Some(dts) = as_dtc_reads_it(&blob) else { return };
    let plain: String = dts.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        plain,
        "/dts-v1/; / { compatible = \"linux,multikernel-overlay\"; mk,resources = \"tombolo:1\"; fragment@0 { \
         target-path = \"/instances\"; __overlay__ { instance-create { instance-name = \"web\"; id = <0x07>; resources { \
         memory-bytes = <0x00 0x80000000>; cpus = <0x00 0x04 0x00 0x06>; }; }; }; }; };"
    );
}

#[test]
fn units_that_go_and_come_are_named_by_their_physical_numbers() {
    let chunk = Chunk { base: 0x1_0000_0000, bytes: 128 << 20, numa_node: None };
    let cpus = |change, cpu| Intent::PoolCpus { change, cpus: vec![PhysicalCpu(cpu)] };
    let of_web =
        |change, cpu| Intent::InstanceCpu { name: "web".parse().unwrap(), change, cpu: PhysicalCpu(cpu) };
    let cases = [
        (cpus(Change::Add, 0x1a), "/resources", "cpu-add", "cpu@1a"),
        (cpus(Change::Remove, 2), "/resources", "cpu-remove", "cpu@2"),
        (Intent::PoolMemoryAdd { bytes: 1 << 30 }, "/resources", "memory-add", "memory@0"),
        (Intent::PoolMemoryRemove { chunk }, "/resources", "memory-remove", "memory@100000000"),
        (of_web(Change::Add, 6), "/instances/web", "cpu-add", "cpu@6"),
        (of_web(Change::Remove, 6), "/instances/web", "cpu-remove", "cpu@6"),
        (pool_device(None), "/resources", "device-add", "pci@0"),
        (Intent::PoolDeviceRemove { function: function() }, "/resources", "device-remove", "pci@0"),
        (device_of_web(Change::Add), "/instances/web", "device-add", "pci@0"),
        (device_of_web(Change::Remove), "/instances/web", "device-remove", "pci@0"),
    ];
    for (intent, target, operation, item) in cases {
        let blob = intent.overlay("n").unwrap();
        let fdt = dtoolkit::fdt::Fdt::new(&blob).unwrap();
        use dtoolkit::Node as _;
        let fragment = fdt.find_node("/fragment@0").unwrap();
        let path = dtoolkit::Property::value_as::<&str>(&fragment.property("target-path").unwrap());
        assert_eq!(path.unwrap(), target);
        let overlay = fragment.child("__overlay__").unwrap();
        assert!(overlay.child(operation).and_then(|operation| operation.child(item)).is_some(), "{intent:?}");
    }
}

#[test]
fn device_is_asked_for_as_the_kernels_documents_say() {
    let cases = [
        (pool_device(None), "/resources", "device-add", ""),
        (pool_device(Some("uplink")), "/resources", "device-add", " alias = \"uplink\";"),
        (Intent::PoolDeviceRemove { function: function() }, "/resources", "device-remove", ""),
        (device_of_web(Change::Add), "/instances/web", "device-add", ""),
        (device_of_web(Change::Remove), "/instances/web", "device-remove", ""),
    ];
    for (intent, target, operation, alias) in cases {
        let blob = intent.overlay("n").unwrap();
        let text = tree(&blob).to_string();
        for wanted in [format!("target-path = \"{target}\""), "pci-id = \"0000:3b:00.1\"".to_owned()] {
            assert!(text.contains(&wanted), "{wanted} is missing in {text}");
        }
        let Some(dts) = as_dtc_reads_it(&blob) else { continue };
        let plain: String = dts.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            plain,
            format!(
                "/dts-v1/; / {{ compatible = \"linux,multikernel-overlay\"; mk,resources = \"n\"; fragment@0 {{ \
                 target-path = \"{target}\"; __overlay__ {{ {operation} {{ pci@0 {{ pci-id = \"0000:3b:00.1\";{alias} \
                 }}; }}; }}; }}; }};"
            )
        );
    }
}

#[test]
fn overlay_that_the_kernel_would_cut_off_is_not_sent() {
    let most = web(0..400).overlay("n").unwrap();
    assert!(most.len() <= BYTES_MAX);
    let error = web(0..600).overlay("n").unwrap_err();
    assert!(error.bytes > BYTES_MAX, "{error}");
}

#[test]
fn first_pool_is_told_as_the_kernels_documents_say() {
    let blob = baseline(&[PhysicalCpu(4)], 1 << 30);
    let Some(dts) = as_dtc_reads_it(&blob) else { return };
    let plain: String = dts.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        plain,
        "/dts-v1/; / { compatible = \"linux,multikernel-host\"; resources { cpus = <0x00 0x04>; memory@0 { size = <0x00 \
         0x40000000>; }; }; };"
    );
}

/// A name that instances may have, and the numbers of its CPUs.
fn any_name() -> impl Strategy<Value = InstanceName> {
    "[a-z][a-z0-9-]{0,30}".prop_filter_map("a name of another's", |name| name.parse().ok())
}

fn any_cpus() -> impl Strategy<Value = Vec<PhysicalCpu>> {
    prop::collection::vec(any::<u32>().prop_map(PhysicalCpu), 0..64)
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![Just(Change::Add), Just(Change::Remove)]
}

fn any_function() -> impl Strategy<Value = PciAddress> {
    (any::<u16>(), any::<u8>(), 0..32_u8, 0..8_u8).prop_map(|(domain, bus, slot, function)| {
        format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}").parse().unwrap()
    })
}

fn any_new_instance() -> impl Strategy<Value = Intent> {
    (any_name(), 1..512_u16, any::<u64>(), any_cpus()).prop_map(|(name, id, memory_bytes, cpus)| {
        Intent::Create(NewInstance { name, id: id.try_into().unwrap(), memory_bytes, cpus })
    })
}

fn any_of_instance() -> impl Strategy<Value = Intent> {
    let cpu = any::<u32>().prop_map(PhysicalCpu);
    let span = (any::<u64>(), any::<u64>()).prop_map(|(base, bytes)| Span { base, bytes });
    prop_oneof![
        any_name().prop_map(Intent::Remove),
        (any_name(), any_change(), cpu).prop_map(|(name, change, cpu)| Intent::InstanceCpu {
            name,
            change,
            cpu
        }),
        (any_name(), any_change(), span).prop_map(|(name, change, span)| Intent::InstanceMemory {
            name,
            change,
            span
        }),
        (any_name(), any_change(), any_function())
            .prop_map(|(name, change, function)| Intent::InstanceDevice { name, change, function }),
    ]
}

fn any_of_pool() -> impl Strategy<Value = Intent> {
    let chunk = (any::<u64>(), any::<u64>()).prop_map(|(base, bytes)| Chunk { base, bytes, numa_node: None });
    let alias = prop::option::of("[a-z][a-z0-9]{0,14}".prop_map(|alias| alias.parse().unwrap()));
    prop_oneof![
        (any_change(), any_cpus()).prop_map(|(change, cpus)| Intent::PoolCpus { change, cpus }),
        any::<u64>().prop_map(|bytes| Intent::PoolMemoryAdd { bytes }),
        chunk.prop_map(|chunk| Intent::PoolMemoryRemove { chunk }),
        (any_function(), alias).prop_map(|(function, alias)| Intent::PoolDeviceAdd { function, alias }),
        any_function().prop_map(|function| Intent::PoolDeviceRemove { function }),
    ]
}

/// dtc reads the same from it as the library: what it writes of it, the library reads as it reads ours.
fn is_the_same_to_dtc(blob: &[u8]) {
    if let Some(written) = by_dtc(blob, "dtb") {
        assert_eq!(tree(&written), tree(blob));
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_for_carries_its_cpus(cpus in prop::collection::vec(any::<u32>(), 0..64)) {
        let blob = web(cpus.clone()).overlay("n").unwrap();
        let fdt = dtoolkit::fdt::Fdt::new(&blob).unwrap();
        use dtoolkit::{Node as _, Property as _};
        let resources = fdt.find_node("/fragment@0/__overlay__/instance-create/resources").unwrap();
        let bytes = resources.property("cpus").unwrap().value().to_vec();
        let read: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        prop_assert_eq!(read, cpus.iter().map(|cpu| u64::from(*cpu)).collect::<Vec<_>>());
    }
}

proptest! {
    // Each case runs a program.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_asked_for_dtc_and_the_library_read_alike(
        intent in prop_oneof![any_new_instance(), any_of_instance(), any_of_pool()],
    ) {
        // One that is too long is not sent.
        if let Ok(blob) = intent.overlay("tombolo:0123456789abcdef:what") {
            is_the_same_to_dtc(&blob);
        }
    }

    #[test]
    fn first_pool_is_the_same_to_dtc_and_to_the_library(cpus in any_cpus(), memory_bytes in any::<u64>()) {
        is_the_same_to_dtc(&baseline(&cpus, memory_bytes));
    }
}
