use super::*;

const TICK_MS: u64 = 50;

/// A kernel under watch, on a clock of its own.
struct Scene {
    monitor: Monitor,
    now_ms: u64,
    beats: bool,
    answers: bool,
    /// What the kernel says when it is asked.
    kernel: Option<bool>,
    asked: u32,
}

impl Scene {
    fn well() -> Self {
        let mut scene = Self {
            monitor: Monitor::new(HealthConfig::default()),
            now_ms: 0,
            beats: true,
            answers: true,
            kernel: Some(false),
            asked: 0,
        };
        scene.run(3_000);
        assert_eq!(scene.verdict(), Verdict::Ready);
        scene
    }

    fn run(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while self.now_ms < until_ms {
            self.now_ms += TICK_MS;
            let now_ns = self.now_ms * 1_000_000;
            self.monitor.tick(now_ns);
            self.monitor.sleep(now_ns, Duration::from_millis(TICK_MS));
            if self.beats {
                self.monitor.heartbeat(now_ns, self.now_ms / 100 + 1);
            }
            if self.now_ms.is_multiple_of(500) {
                if self.answers {
                    self.monitor.probe_answered(now_ns, Wellness::Ready);
                } else {
                    self.monitor.probe_failed();
                }
            }
            if self.monitor.wants_kernel_probe(now_ns) {
                self.asked += 1;
                self.monitor.kernel_probed(self.kernel);
            }
        }
    }

    fn verdict(&self) -> Verdict {
        self.monitor.verdict(self.now_ms * 1_000_000)
    }
}

#[test]
fn a_kernel_that_has_not_reported_is_booting() {
    let mut monitor = Monitor::new(HealthConfig::default());
    monitor.heartbeat(1, 5);
    assert_eq!(monitor.verdict(u64::MAX / 2), Verdict::Booting);
}

#[test]
fn silence_on_both_ways_is_a_hang_and_it_heals() {
    let mut scene = Scene::well();
    (scene.beats, scene.answers) = (false, false);
    scene.run(3_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
    (scene.beats, scene.answers) = (true, true);
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn silence_on_one_way_only_degrades() {
    for (beats, answers) in [(true, false), (false, true)] {
        let mut scene = Scene::well();
        (scene.beats, scene.answers) = (beats, answers);
        scene.run(5_000);
        assert_eq!(scene.verdict(), Verdict::Degraded, "beats {beats}, answers {answers}");
    }
}

#[test]
fn a_kernel_that_answers_its_spawner_while_its_agent_is_silent_has_a_dead_user_space() {
    let mut scene = Scene::well();
    (scene.beats, scene.answers, scene.kernel) = (false, false, Some(true));
    scene.run(3_000);
    assert_eq!(scene.verdict(), Verdict::UserSpaceDead);
    scene.kernel = Some(false);
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Hung, "then the kernel stopped, too");
    (scene.beats, scene.answers) = (true, true);
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn a_kernel_that_does_not_answer_hangs_before_its_agent_was_given_up() {
    let mut scene = Scene::well();
    scene.beats = false;
    let beat_ns = scene.monitor.last_beat_ns().unwrap();
    let later_ns = beat_ns + 2_000_000_000;
    assert_eq!(scene.monitor.verdict(later_ns), Verdict::Degraded, "one witness");
    scene.monitor.kernel_probed(Some(false));
    assert_eq!(scene.monitor.verdict(later_ns), Verdict::Hung, "two");
    scene.monitor.probe_answered(beat_ns + 1_000_000_000, Wellness::Ready);
    assert_eq!(scene.monitor.verdict(later_ns), Verdict::Degraded, "its agent has answered since");
}

#[test]
fn one_that_hung_under_an_earlier_daemon_hangs_still_unless_it_shows_otherwise() {
    for (beats, verdict) in [(false, Verdict::Hung), (true, Verdict::Ready)] {
        let mut scene = Scene::well();
        scene.monitor = Monitor::new(HealthConfig::default());
        scene.monitor.was_silent(scene.now_ms * 1_000_000);
        assert_eq!(scene.verdict(), Verdict::Degraded, "nobody knows yet");
        // What stands in the pool is seen whether it moves or not.
        scene.monitor.heartbeat(scene.now_ms * 1_000_000, 7);
        (scene.beats, scene.answers) = (beats, beats);
        scene.run(3_000);
        assert_eq!(scene.verdict(), verdict);
    }
}

#[test]
fn patience_shrinks_with_the_gap_between_heartbeats_to_a_limit() {
    let pause = |ms| HealthConfig::for_heartbeat(Duration::from_millis(ms)).pause.as_millis();
    assert_eq!([20, 40, 100, 200, 1_000].map(pause), [100, 200, 300, 300, 1_000]);
}

#[test]
fn a_kernel_is_asked_only_while_something_is_suspicious_and_only_if_it_can_be() {
    let mut scene = Scene::well();
    scene.run(60_000);
    assert_eq!(scene.asked, 0, "all was well");
    scene.beats = false;
    scene.run(3_000);
    assert!(scene.asked > 0);

    let mut scene = Scene::well();
    (scene.beats, scene.answers, scene.kernel) = (false, false, None);
    scene.run(3_000);
    assert_eq!((scene.asked, scene.verdict()), (1, Verdict::Hung));
}

#[test]
fn nobody_is_called_hung_before_the_kernel_itself_was_asked() {
    let mut scene = Scene::well();
    let silent_since_ns = scene.now_ms * 1_000_000;
    for _ in 0..4 {
        scene.monitor.probe_failed();
    }
    let later_ns = silent_since_ns + 10_000_000_000;
    assert_eq!(scene.monitor.verdict(later_ns), Verdict::Degraded);
    assert!(scene.monitor.wants_kernel_probe(later_ns));
    scene.monitor.kernel_probed(Some(false));
    assert_eq!(scene.monitor.verdict(later_ns), Verdict::Hung);
}

#[test]
fn a_stuck_cpu_degrades_a_kernel_that_answers_and_is_no_excuse_for_one_that_does_not() {
    let mut scene = Scene::well();
    scene.monitor.cpus_reported(true);
    assert_eq!(scene.verdict(), Verdict::Degraded);
    (scene.beats, scene.answers) = (false, false);
    scene.run(3_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
    (scene.beats, scene.answers) = (true, true);
    scene.monitor.cpus_reported(false);
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn one_slow_probe_and_one_late_beat_change_nothing() {
    let mut scene = Scene::well();
    scene.monitor.probe_failed();
    assert_eq!(scene.verdict(), Verdict::Ready);
    scene.beats = false;
    scene.run(250);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn the_keepers_word_is_final() {
    for (end, verdict) in [
        (End::PoweredOff, Verdict::PoweredOff),
        (End::Panicked, Verdict::Panicked),
        (End::Signaled(9), Verdict::Killed),
        (End::Vanished, Verdict::Killed),
    ] {
        let mut scene = Scene::well();
        scene.monitor.ended(end);
        assert_eq!(scene.verdict(), verdict);
    }
}

#[test]
fn a_suspended_host_accuses_nobody_when_it_wakes() {
    let mut scene = Scene::well();
    // Everything stops for a minute: we, the kernel and the link.
    scene.now_ms += 60_000;
    let now_ns = scene.now_ms * 1_000_000;
    scene.monitor.probe_failed();
    scene.monitor.probe_failed();
    scene.monitor.tick(now_ns);
    assert_eq!(scene.verdict(), Verdict::Ready);
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn a_lag_of_our_own_does_not_heal_a_hang() {
    let mut scene = Scene::well();
    (scene.beats, scene.answers) = (false, false);
    scene.run(3_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
    // Recording that takes a second on a slow disk.
    scene.now_ms += 1_000;
    scene.monitor.tick(scene.now_ms * 1_000_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
}

#[test]
fn a_suspended_host_still_finds_the_kernel_that_did_not_wake() {
    let mut scene = Scene::well();
    (scene.beats, scene.answers) = (false, false);
    scene.now_ms += 60_000;
    scene.run(5_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
}

/// One that shares no memory, and is well.
fn well_without_heartbeat() -> Scene {
    let mut scene = Scene::well();
    scene.monitor = Monitor::new(HealthConfig::default());
    scene.monitor.expects_heartbeat(false);
    scene.beats = false;
    scene.run(60_000);
    assert_eq!((scene.verdict(), scene.asked), (Verdict::Ready, 0));
    scene
}

#[test]
fn kernel_without_heartbeat_whose_agent_and_itself_are_silent_hangs_and_it_heals() {
    let mut scene = well_without_heartbeat();
    scene.answers = false;
    scene.run(2_500);
    assert_eq!(scene.verdict(), Verdict::Degraded, "its link may be broken, and is mended by then");
    scene.run(2_000);
    assert_eq!(scene.verdict(), Verdict::Hung);
    scene.answers = true;
    scene.run(1_000);
    assert_eq!(scene.verdict(), Verdict::Ready);
}

#[test]
fn kernel_without_heartbeat_that_answers_itself_has_a_dead_user_space() {
    let mut scene = well_without_heartbeat();
    (scene.answers, scene.kernel) = (false, Some(true));
    scene.run(5_000);
    assert_eq!(scene.verdict(), Verdict::UserSpaceDead);
}

#[test]
fn agent_without_heartbeat_condemns_nobody_by_its_silence_alone() {
    let mut scene = well_without_heartbeat();
    (scene.answers, scene.kernel) = (false, None);
    scene.run(600_000);
    assert_eq!(scene.verdict(), Verdict::Degraded);
}
