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

/// What the kernel's developers read device trees with, where it is installed.
fn as_dtc_reads_it(blob: &[u8]) -> Option<String> {
    use std::io::Write as _;
    let mut dtc = Command::new("dtc")
        .args(["-q", "-I", "dtb", "-O", "dts", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    dtc.stdin.take().unwrap().write_all(blob).unwrap();
    let output = dtc.wait_with_output().unwrap();
    assert!(output.status.success(), "dtc refuses it");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn new_instance_is_asked_for_as_the_kernels_documents_say() {
    let blob = web([4, 6]).overlay("tombolo:1").unwrap();
    let text = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(&blob).unwrap()).to_string();
    for wanted in [
        "compatible = \"linux,multikernel-overlay\"",
        "mk,resources = \"tombolo:1\"",
        "target-path = \"/instances\"",
        "instance-name = \"web\"",
        "instance-create",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    let Some(dts) = as_dtc_reads_it(&blob) else { return eprintln!("skipped in part: there is no dtc here") };
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
        let text = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(&blob).unwrap()).to_string();
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
    let Some(dts) = as_dtc_reads_it(&blob) else { return eprintln!("skipped: there is no dtc here") };
    let plain: String = dts.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        plain,
        "/dts-v1/; / { compatible = \"linux,multikernel-host\"; resources { cpus = <0x00 0x04>; memory@0 { size = <0x00 \
         0x40000000>; }; }; };"
    );
}

proptest! {
    #[test]
    fn whatever_is_asked_for_dtc_and_the_library_read_alike(cpus in prop::collection::vec(any::<u32>(), 0..64)) {
        let blob = web(cpus.clone()).overlay("n").unwrap();
        let fdt = dtoolkit::fdt::Fdt::new(&blob).unwrap();
        use dtoolkit::{Node as _, Property as _};
        let resources = fdt.find_node("/fragment@0/__overlay__/instance-create/resources").unwrap();
        let bytes = resources.property("cpus").unwrap().value().to_vec();
        let read: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        prop_assert_eq!(read, cpus.iter().map(|cpu| u64::from(*cpu)).collect::<Vec<_>>());
    }
}
