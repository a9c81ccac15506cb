//! Made-up hosts, as trees of plain files.

use std::fs;

use tempfile::TempDir;

use super::*;

/// A host without any file.
fn host() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(host: &TempDir, path: &str, text: &str) {
    let path = host.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn cpu(host: &TempDir, id: u32, package: &str, siblings: &str, llc: (&str, &str)) {
    let of = |name: &str| format!("sys/devices/system/cpu/cpu{id}/{name}");
    file(host, &of("topology/physical_package_id"), package);
    file(host, &of("topology/thread_siblings_list"), siblings);
    for (index, level, kind, cpus) in
        [(0, "1", "Data", siblings), (1, "1", "Instruction", siblings), (3, "3", "Unified", llc.1)]
    {
        let of = |name: &str| of(&format!("cache/index{index}/{name}"));
        file(host, &of("level"), level);
        file(host, &of("type"), kind);
        file(host, &of("shared_cpu_list"), cpus);
        file(host, &of("id"), llc.0);
        file(host, &of("size"), "32768K\n");
        file(host, &of("ways_of_associativity"), "11\n");
    }
}

/// Two packages of two cores with two threads each; Linux numbers the second threads last.
fn two_packages() -> TempDir {
    let host = host();
    file(&host, "sys/devices/system/cpu/online", "0-7\n");
    for id in 0..8 {
        let package = id / 2 % 2;
        let llc = if package == 0 { "0-1,4-5\n" } else { "2-3,6-7\n" };
        let siblings = format!("{},{}\n", id % 4, id % 4 + 4);
        cpu(&host, id, &format!("{package}\n"), &siblings, (&format!("{package}\n"), llc));
    }
    file(&host, "sys/devices/system/node/online", "0-1\n");
    for (node, cpus) in [(0, "0-1,4-5\n"), (1, "2-3,6-7\n")] {
        let of = |name: &str| format!("sys/devices/system/node/node{node}/{name}");
        file(&host, &of("cpulist"), cpus);
        file(
            &host,
            &of("meminfo"),
            &format!("Node {node} MemTotal:  1048576 kB\nNode {node} MemFree: 5 kB\n"),
        );
    }
    host
}

#[test]
fn cores_packages_nodes_and_caches_of_a_host_are_found() {
    let host = two_packages();
    let found = Topology::read(host.path());
    let cpu = |id| *found.cpu(id).unwrap();
    assert_eq!(found.cpus.len(), 8);
    assert_eq!(cpu(0), HostCpu { id: 0, core: 0, package: Some(0), node: Some(0), boot: true });
    assert_eq!(cpu(7), HostCpu { id: 7, core: 3, package: Some(1), node: Some(1), boot: false });
    assert_eq!(found.nodes[1], Node { id: 1, memory_bytes: Some(1 << 30) });
    let caches: Vec<_> = found.caches.iter().map(|cache| (cache.id, cache.level, cache.cpus.len())).collect();
    assert_eq!(caches, [(0, 3, 4), (1, 3, 4)]);
    assert_eq!((found.caches[0].ways, found.caches[0].bytes), (Some(11), Some(32 << 20)));
    let line = found.describe();
    for part in
        ["2 packages, 4 cores, 8 threads, 2 NUMA nodes", "node 1 with 1024 MiB", "32768 KiB in 11 ways"]
    {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn host_that_tells_little_has_cpus_that_share_nothing_known() {
    let host = host();
    file(&host, "sys/devices/system/cpu/online", "0,3\n");
    let found = Topology::read(host.path());
    let bare = |id| HostCpu { id, core: id, package: None, node: None, boot: id == 0 };
    assert_eq!(found.cpus, [bare(0), bare(3)]);
    assert!(found.nodes.is_empty() && found.caches.is_empty());
    assert_eq!(Topology::read(&host.path().join("nothing")), Topology::default());
}

#[test]
fn files_that_lie_or_are_broken_cost_only_what_they_tell() {
    let host = two_packages();
    let of = |name: &str| format!("sys/devices/system/cpu/cpu1/{name}");
    file(&host, &of("topology/thread_siblings_list"), "2-3\n");
    file(&host, &of("topology/physical_package_id"), "-1\n");
    file(&host, &of("cache/index3/shared_cpu_list"), "0-99999999999\n");
    file(&host, "sys/devices/system/cpu/cpu0/cache/index3/ways_of_associativity", "0\n");
    file(&host, "sys/devices/system/cpu/cpu0/cache/index3/id", "x\n");
    file(&host, "sys/devices/system/node/node0/cpulist", "0-\n");
    file(
        &host,
        "sys/devices/system/node/node1/meminfo",
        "Node 0 MemTotal: 5 kB\n\u{0}Node 1 MemTotal: many\n",
    );
    let found = Topology::read(host.path());
    let cpu = *found.cpu(1).unwrap();
    assert_eq!(cpu, HostCpu { id: 1, core: 1, package: None, node: None, boot: false });
    assert_eq!(found.nodes, [Node { id: 1, memory_bytes: None }]);
    assert_eq!((found.caches[0].id, found.caches[0].ways), (0, None), "named after its lowest CPU");
    fs::write(host.path().join("sys/devices/system/cpu/online"), [0xff, 0xfe, b'0']).unwrap();
    assert!(Topology::read(host.path()).cpus.is_empty());
}

#[test]
fn cache_ways_can_be_set_apart_only_where_the_kernel_says_into_how_many() {
    let host = host();
    let look = || Topology::read(host.path()).resctrl;
    assert_eq!(look(), Resctrl::Absent);
    file(&host, "proc/filesystems", "nodev\tsysfs\nnodev\tresctrlfs\n");
    assert_eq!(look(), Resctrl::Absent);
    file(&host, "proc/filesystems", "nodev\tsysfs\nnodev\tresctrl\n");
    assert_eq!(look(), Resctrl::NotMounted);
    file(&host, "sys/fs/resctrl/info/L3_MON/num_rmids", "8\n");
    assert_eq!(look(), Resctrl::NoCacheWays);
    let of = |name: &str| format!("sys/fs/resctrl/info/L3/{name}");
    file(&host, &of("cbm_mask"), "7ff\n");
    file(&host, &of("min_cbm_bits"), "1\n");
    file(&host, &of("num_closids"), "16\n");
    assert_eq!(look(), Resctrl::CacheWays { ways: 11, ways_min: 1, groups_max: 16 });
    for (name, text) in
        [("cbm_mask", "0\n"), ("cbm_mask", "zz\n"), ("cbm_mask", ""), ("min_cbm_bits", "12\n")]
    {
        file(&host, &of("cbm_mask"), "7ff\n");
        file(&host, &of(name), text);
        assert_eq!(look(), Resctrl::NoCacheWays, "{name}: {text:?}");
    }
}

#[test]
fn this_host_has_the_cpus_that_its_kernel_says_are_online() {
    let found = Topology::of_this_host();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let ids: Vec<u32> = found.cpus.iter().map(|cpu| cpu.id).collect();
    assert_eq!(text::cpu_list(&online), Some(ids));
    for cpu in &found.cpus {
        assert!(found.cpu(cpu.core).is_none_or(|first| first.core == cpu.core), "{cpu:?}");
    }
}
