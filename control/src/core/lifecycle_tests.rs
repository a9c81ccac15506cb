use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(5);
const BOOT: Duration = Duration::from_secs(30);

fn rules() -> Rules {
    Rules { boot_timeout: BOOT, ..Rules::default() }
}

fn drive(life: &mut Lifecycle, inputs: &[Input]) -> Vec<Effect> {
    inputs.iter().flat_map(|&input| life.handle(&rules(), 1, input)).collect()
}

fn running() -> Lifecycle {
    let mut life = Lifecycle::default();
    drive(&mut life, &[Input::Start, Input::Reserved, Input::Loaded, Input::Spawned, Input::AgentUp]);
    assert_eq!(life.state(), State::Running);
    life
}

#[test]
fn a_start_reserves_loads_spawns_and_waits_for_the_agent() {
    let mut life = Lifecycle::default();
    let effects =
        drive(&mut life, &[Input::Start, Input::Reserved, Input::Loaded, Input::Spawned, Input::AgentUp]);
    assert_eq!(
        effects,
        [
            Effect::Disarm(Timer::Restart),
            Effect::Reserve,
            Effect::Load,
            Effect::Spawn,
            Effect::Arm(Timer::Boot, BOOT),
            Effect::Disarm(Timer::Boot),
        ]
    );
}

#[test]
fn a_graceful_stop_drains_then_releases() {
    let mut life = running();
    assert_eq!(
        drive(&mut life, &[Input::Stop(GRACE)]),
        [Effect::Disarm(Timer::Boot), Effect::Drain(GRACE), Effect::Arm(Timer::Grace, GRACE)]
    );
    let effects = drive(&mut life, &[Input::Ended(End::PoweredOff)]);
    assert_eq!(life.state(), State::Stopped);
    assert_eq!(effects[..2], [Effect::Fence, Effect::KeepLastWords]);
    assert!(effects.contains(&Effect::Release));
}

#[test]
fn a_kernel_that_ignores_the_stop_is_killed_when_grace_ends() {
    let mut life = running();
    drive(&mut life, &[Input::Stop(GRACE)]);
    assert_eq!(drive(&mut life, &[Input::Expired(Timer::Grace)]), [Effect::Kill]);
    drive(&mut life, &[Input::Ended(End::Signaled(9))]);
    assert_eq!(life.state(), State::Stopped);
}

#[test]
fn a_kernel_that_was_found_running_and_reports_late_is_not_hung() {
    let mut life = running();
    drive(&mut life, &[Input::Resume(Found::Alive), Input::Expired(Timer::Boot)]);
    assert_eq!(life.state(), State::Hung);
    drive(&mut life, &[Input::AgentUp]);
    assert_eq!(life.state(), State::Running);
}

#[test]
fn a_death_fences_before_anything_else_and_restarts_after_the_back_off() {
    let mut life = running();
    let effects = drive(&mut life, &[Input::Ended(End::Signaled(9))]);
    assert_eq!(effects[0], Effect::Fence);
    assert_eq!(effects.last(), Some(&Effect::Arm(Timer::Restart, Duration::from_secs(1))));
    assert_eq!(life.state(), State::Failed);
    assert_eq!(drive(&mut life, &[Input::Expired(Timer::Restart)]), [Effect::Reserve]);
}

#[test]
fn an_orderly_power_off_is_not_restarted_unless_always() {
    let mut life = running();
    drive(&mut life, &[Input::Ended(End::PoweredOff)]);
    assert_eq!((life.state(), life.desired()), (State::Stopped, Desired::Stopped));

    let mut life = running();
    let always = Rules { restart: RestartPolicy::Always, ..rules() };
    let effects = life.handle(&always, 1, Input::Ended(End::PoweredOff));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Arm(Timer::Restart, _))));
}

#[test]
fn the_policy_never_leaves_a_dead_kernel_alone() {
    let mut life = running();
    let never = Rules { restart: RestartPolicy::Never, ..rules() };
    let effects = life.handle(&never, 1, Input::Ended(End::Panicked));
    assert_eq!((life.state(), life.desired()), (State::Failed, Desired::Stopped));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Arm(..))));
}

#[test]
fn a_crash_loop_is_given_up() {
    let mut life = running();
    let mut gave_up = false;
    for _ in 0..20 {
        gave_up |= drive(&mut life, &[Input::Ended(End::Panicked)]).contains(&Effect::GiveUp);
        if gave_up {
            break;
        }
        drive(
            &mut life,
            &[Input::Expired(Timer::Restart), Input::Reserved, Input::Loaded, Input::Spawned, Input::AgentUp],
        );
    }
    assert!(gave_up);
    assert_eq!(life.desired(), Desired::Stopped);
    assert_eq!(drive(&mut life, &[Input::Expired(Timer::Restart)]), []);
}

#[test]
fn a_start_that_cannot_be_carried_out_is_not_tried_again_but_a_restart_is() {
    let mut life = Lifecycle::default();
    let effects = drive(&mut life, &[Input::Start, Input::Reserved, Input::StepFailed]);
    assert_eq!((life.state(), life.desired()), (State::Failed, Desired::Stopped));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Arm(Timer::Restart, _))));

    let mut life = running();
    drive(&mut life, &[Input::Ended(End::Panicked), Input::Expired(Timer::Restart), Input::Reserved]);
    let effects = drive(&mut life, &[Input::StepFailed]);
    assert_eq!(effects.last(), Some(&Effect::Arm(Timer::Restart, Duration::from_secs(2))));
}

#[test]
fn a_hang_is_reported_and_nothing_is_restarted() {
    let mut life = running();
    assert_eq!(drive(&mut life, &[Input::Silent]), []);
    assert_eq!(life.state(), State::Hung);
    assert_eq!(drive(&mut life, &[Input::Answers]), []);
    assert_eq!(life.state(), State::Running);
}

#[test]
fn a_kernel_that_hangs_is_taken_out_of_service_only_if_the_policy_says_so() {
    let mut life = running();
    let strict = Rules { on_hang: OnHang::Restart, ..rules() };
    assert_eq!(life.handle(&strict, 1, Input::Silent), [Effect::Escalate]);
}

#[test]
fn the_operators_kill_wins_over_the_ladder_and_a_new_daemon_begins_it_anew() {
    let strict = Rules { on_hang: OnHang::Restart, ..rules() };
    let mut life = running();
    life.handle(&strict, 1, Input::Silent);
    let mut adopted = life.clone();
    assert!(life.handle(&strict, 2, Input::Kill).contains(&Effect::Kill));
    life.handle(&strict, 3, Input::Ended(End::Signaled(9)));
    assert_eq!((life.state(), life.desired()), (State::Stopped, Desired::Stopped));

    adopted.handle(&strict, 2, Input::Resume(Found::Alive));
    assert_eq!(adopted.handle(&strict, 3, Input::Silent), [Effect::Escalate]);
}

#[test]
fn a_kill_stays_stopped() {
    let mut life = running();
    assert!(drive(&mut life, &[Input::Kill]).contains(&Effect::Kill));
    drive(&mut life, &[Input::Ended(End::Signaled(9))]);
    assert_eq!((life.state(), life.desired()), (State::Stopped, Desired::Stopped));
}

#[test]
fn a_restart_starts_again_once_the_old_kernel_has_ended() {
    let mut life = running();
    drive(&mut life, &[Input::Restart(GRACE)]);
    let effects = drive(&mut life, &[Input::Ended(End::PoweredOff)]);
    assert_eq!(effects.last(), Some(&Effect::Reserve));
}

#[test]
fn a_boot_that_never_reports_is_killed() {
    let mut life = Lifecycle::default();
    drive(&mut life, &[Input::Start, Input::Reserved, Input::Loaded, Input::Spawned]);
    assert_eq!(drive(&mut life, &[Input::Expired(Timer::Boot)]), [Effect::Kill]);
}

#[test]
fn a_new_daemon_adopts_what_still_runs() {
    for inputs in [&[][..], &[Input::Silent]] {
        let mut life = running();
        drive(&mut life, inputs);
        drive(&mut life, &[Input::Resume(Found::Alive)]);
        assert_eq!(life.state(), State::Adopted);
        drive(&mut life, &[Input::AgentUp]);
        assert_eq!(life.state(), State::Running);
    }
}

#[test]
fn a_new_daemon_restarts_what_died_meanwhile_and_reports_what_vanished() {
    let mut life = running();
    drive(&mut life, &[Input::Resume(Found::Dead(End::Panicked))]);
    assert_eq!(life.state(), State::Failed);
    let mut life = running();
    let effects = drive(&mut life, &[Input::Resume(Found::Nothing)]);
    assert_eq!(life.state(), State::Lost);
    assert!(effects.contains(&Effect::Fence));
}

#[test]
fn a_new_daemon_finishes_half_done_starts_and_stops() {
    let start = [Input::Start, Input::Reserved, Input::Loaded];
    for (done, expected) in [(1, Effect::Reserve), (2, Effect::Load), (3, Effect::Spawn)] {
        let mut life = Lifecycle::default();
        drive(&mut life, &start[..done]);
        assert_eq!(drive(&mut life, &[Input::Resume(Found::Nothing)]), [expected]);
    }
    let mut life = running();
    drive(&mut life, &[Input::Stop(GRACE)]);
    assert!(matches!(drive(&mut life, &[Input::Resume(Found::Alive)])[0], Effect::Drain(_)));
    drive(&mut life, &[Input::Resume(Found::Nothing)]);
    assert_eq!(life.state(), State::Stopped);
}

#[test]
fn a_stop_while_the_kernel_is_being_started_kills_it_as_soon_as_it_exists() {
    let mut life = Lifecycle::default();
    drive(&mut life, &[Input::Start, Input::Reserved, Input::Loaded, Input::Stop(GRACE)]);
    assert_eq!(drive(&mut life, &[Input::Spawned]), [Effect::Kill]);
}

fn any_input() -> impl Strategy<Value = Input> {
    let end = prop_oneof![
        Just(End::PoweredOff),
        Just(End::Panicked),
        Just(End::Signaled(9)),
        Just(End::Exited(1)),
        Just(End::Vanished)
    ];
    prop_oneof![
        3 => Just(Input::Start),
        1 => Just(Input::Stop(GRACE)),
        1 => Just(Input::Kill),
        1 => Just(Input::Restart(GRACE)),
        4 => Just(Input::Reserved),
        4 => Just(Input::Loaded),
        4 => Just(Input::Spawned),
        1 => Just(Input::StepFailed),
        4 => Just(Input::AgentUp),
        1 => Just(Input::Silent),
        1 => Just(Input::Answers),
        2 => end.clone().prop_map(Input::Ended),
        1 => prop_oneof![Just(Timer::Boot), Just(Timer::Grace), Just(Timer::Restart)].prop_map(Input::Expired),
        1 => prop_oneof![Just(Found::Alive), end.prop_map(Found::Dead), Just(Found::Nothing)].prop_map(Input::Resume),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_inputs_makes_an_illegal_transition(inputs in prop::collection::vec(any_input(), 0..60)) {
        let mut life = Lifecycle::default();
        for (at, input) in inputs.into_iter().enumerate() {
            let before = life.state();
            let effects = life.handle(&rules(), at as u64, input);
            let after = life.state();
            prop_assert!(before == after || before.may_become(after), "{before} -> {after} on {input:?}");
            if before.may_have_kernel() && !after.may_have_kernel() {
                prop_assert!(effects.contains(&Effect::Fence), "{before} -> {after} without a fence");
            }
            if effects.contains(&Effect::Spawn) {
                prop_assert_eq!(life.desired(), Desired::Running);
            }
        }
    }

    #[test]
    fn after_a_stop_and_its_end_nothing_starts_by_itself(inputs in prop::collection::vec(any_input(), 0..40)) {
        let mut life = Lifecycle::default();
        for input in inputs {
            life.handle(&rules(), 1, input);
        }
        life.handle(&rules(), 1, Input::Stop(GRACE));
        life.handle(&rules(), 1, Input::Ended(End::PoweredOff));
        for input in [Input::Expired(Timer::Restart), Input::Reserved, Input::Loaded, Input::Resume(Found::Nothing)] {
            let effects = life.handle(&rules(), 1, input);
            prop_assert!(!effects.contains(&Effect::Spawn) && !effects.contains(&Effect::Reserve));
        }
    }

    #[test]
    fn a_record_survives_storage(inputs in prop::collection::vec(any_input(), 0..40)) {
        let mut life = Lifecycle::default();
        for input in inputs {
            life.handle(&rules(), 1, input);
        }
        let stored = serde_json::to_vec(&life).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Lifecycle>(&stored).unwrap(), life);
    }
}
