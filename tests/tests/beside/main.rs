//! Kernels beside this one, as their users meet them: the daemon's `multikernel` spawner on the **stand-in** for Multikernel Linux.
//!
//! Each test has a stand-in of its own, under which this program runs again. [`life`] is the life of one kernel, whoever dies, [`unmounted`] what comes of the
//! file system being unmounted meanwhile, [`said`] what is said of a boot and what is not;
//! [`without_pool`] is that of one that shares no memory with the host, [`shared_memory`] that of the memory that the daemon itself makes; [`with_kerf`] is living together with another program that changes the same kernel's
//! books, [`adopted`] taking over what it made.

use tombolo_tests::bed::Bed;
use tombolo_tests::prerequisites;
use tombolo_tests::standin::{self, StandIn};

mod adopted;
mod console;
mod life;
mod said;
mod shared_memory;
mod unmounted;
mod with_kerf;
mod without_pool;

/// Memory of a kernel here, in MiB.
const MEMORY: &str = "96";

/// What its host has of PCI functions.
const DEVICE: &str = "0000:03:00.0=8086:1572";

/// A daemon on a stand-in, which runs outside of it as well.
struct Beside {
    bed: Bed,
    stand_in: StandIn,
}

impl Beside {
    /// With a daemon that answers, and nothing set aside.
    fn start() -> Option<Self> {
        Self::start_on(standin::here()?)
    }

    fn start_on(stand_in: StandIn) -> Option<Self> {
        let mut bed = Bed::prepare_beside(&stand_in)?;
        bed.start_daemon();
        Some(Self { bed, stand_in })
    }

    /// The same with a pool that Tombolo has made.
    fn with_pool() -> Option<Self> {
        Self::start().map(Self::set_aside)
    }

    /// The same where kernels share no memory with the host.
    fn without_shared_memory() -> Option<Self> {
        Self::start_on(standin::here()?.without_shared_memory()).map(Self::set_aside)
    }

    fn set_aside(self) -> Self {
        self.bed.must(&["multikernel", "pool", "--cpus", "2,4,6", "--memory", "1G"]);
        self
    }

    /// Boots a kernel `web` that has the demo's application.
    fn boot(&self, options: &[&str]) {
        self.boot_as("web", options);
    }

    fn boot_as(&self, name: &str, options: &[&str]) {
        let app = prerequisites::static_program("tombolo-demo-kv").expect("the programs are built");
        let file = format!("{}:/bin/app", app.display());
        let up = ["up", name, "--memory", MEMORY, "--file", &file];
        self.bed.must(&[&up, options].concat());
    }

    /// What the kernel of `web` has as its own.
    fn boot_id(&self) -> String {
        let said = self.bed.must(&["exec", "web", "--", "/bin/app", "where-am-i"]);
        said.json()["boot_id"].as_str().unwrap().to_owned()
    }

    /// Ends the daemon and all its kernels. Nothing may be left, nor in the kernel's books except `theirs`.
    fn nothing_is_left_but(self, theirs: &[&str]) {
        self.bed.nothing_is_left();
        assert_eq!(self.stand_in.instances(), theirs);
        assert!(!std::path::Path::new("/run/kerf.lock").exists(), "the lock is left");
    }
}

/// Tests that run under a stand-in of their own, with an option of it or none, where there is what they need: what is missing is said outside of it, where it is seen.
macro_rules! on_the_stand_in {
    ($($module:ident needs $needed:expr $(, $option:literal)? => $($test:ident),* $(,)?;)*) => {
        $(on_the_stand_in!(@tests $module $needed, [$($option)?]: $($test)*);)*
    };
    (@tests $module:ident $needed:expr, $options:tt: $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                if standin::here().is_some() {
                    $module::$test();
                } else if $needed.is_some() {
                    standin::rerun(stringify!($test), &[&["--device", DEVICE][..], &$options].concat());
                }
            }
        )*
    };
}

on_the_stand_in!(
    life needs Some(()) =>
        kernel_lives_and_ends_in_good_order,
        panic_is_told_apart_and_restarted,
        hang_is_seen_and_ended_by_force,
        kernel_that_hangs_when_it_is_to_stop_is_ended_by_force_and_each_step_is_told,
        next_daemon_adopts_the_kernel_of_one_that_was_killed,
        another_keeper_stands_for_the_kernel_of_one_that_was_killed,
        cpus_are_in_the_ledger_and_stay_with_a_kernel_that_cannot_name_them,
        device_is_set_aside_booted_with_and_given_back,
        doctor_finds_nothing_wrong;
    unmounted needs Some(()) =>
        kernel_runs_on_while_its_file_system_is_unmounted,
        kernel_that_ends_while_its_file_system_is_unmounted_is_seen_ended_once_that_is_back;
    said needs Some(()) =>
        console_is_recorded_from_the_first_byte_that_the_kernel_writes,
        secret_of_a_boot_is_in_no_log_and_on_no_command_line;
    without_pool needs Some(()) =>
        kernel_without_shared_memory_is_reached_and_says_over_what,
        kernels_of_all_are_called_when_that_is_asked_for,
        next_daemon_reaches_a_kernel_without_shared_memory,
        link_that_breaks_or_loses_bytes_is_taken_up_again,
        applications_in_kernels_without_shared_memory_talk_to_each_other_and_to_the_host,
        behaviours_of_connections_hold_over_a_link_that_is_cut_while_they_are_put_to_the_test,
        panic_without_shared_memory_is_told_apart_and_restarted,
        hang_without_heartbeat_is_seen_by_two_witnesses_and_ended_by_force,
        kernel_that_is_frozen_for_a_while_is_taken_up_again,
        user_space_that_stood_still_for_long_is_reached_again,
        dead_user_space_without_heartbeat_is_told_from_a_hang;
    without_pool needs Some(()), "--see-writes" =>
        full_ring_is_waited_for_and_nothing_is_lost_or_repeated;
    shared_memory needs Some(()) =>
        buffer_of_the_heap_is_shared_and_outlives_its_daemon;
    console needs prerequisites::kerf() =>
        console_that_is_lent_is_heard_by_kerf_alone_whoever_opened_it_first,
        lease_of_the_console_ends_at_its_time_and_with_its_kernel;
    with_kerf needs prerequisites::kerf() =>
        kerf_makes_the_pool_and_shows_what_tombolo_starts_in_it,
        instances_of_kerf_are_shown_and_never_touched,
        kernel_that_kerf_runs_is_left_running,
        number_that_kerf_has_given_to_another_instance_is_left_to_it,
        kerf_changes_its_own_while_ours_runs,
        what_kerf_gives_to_ours_is_given_back_with_it,
        kernel_that_kerf_ends_is_seen_ended,
        both_write_at_once_and_no_transaction_is_confused,
        lock_that_a_killed_kerf_left_is_waited_for_and_removed_when_it_is_old;
    adopted needs prerequisites::kerf() =>
        instance_that_kerf_made_lives_on_as_ours_once_it_is_adopted,
        what_kerf_has_noted_of_an_instance_is_left_as_it_is,
        kernel_that_kerf_runs_is_adopted_only_by_force_and_ended_only_by_force,
        daemon_killed_at_any_moment_has_adopted_it_or_has_not;
);
