use super::*;

const S: u64 = 1_000_000_000;
const WEB: InstanceId = InstanceId(3);
const DB: InstanceId = InstanceId(4);

/// Kernels with a demand in hundredths of a CPU, and PSI's own smoothing over 10 s.
struct Machine {
    now_ns: u64,
    kernels: Vec<(Member, u64, BasisPoints)>,
    pool: u64,
    balancer: Balancer,
    moves: Vec<(u64, Proposal)>,
}

impl Machine {
    fn new(cpus: &[(InstanceId, u64)], pool: u64) -> Self {
        let member = |&(instance, cpus)| {
            let bounds = Bounds { min: 1, desired: cpus, max: 8 };
            (Member { instance, cpus, bounds, is_moving: false }, 0, 0)
        };
        Self {
            now_ns: 0,
            kernels: cpus.iter().map(member).collect(),
            pool,
            balancer: Balancer::default(),
            moves: Vec::new(),
        }
    }

    fn kernel(&mut self, id: InstanceId) -> &mut (Member, u64, BasisPoints) {
        self.kernels.iter_mut().find(|kernel| kernel.0.instance == id).unwrap()
    }

    fn run(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.now_ns += S;
            let mut readings = Vec::new();
            for (member, demand, stall) in &mut self.kernels {
                let supply = member.cpus * 100;
                let waiting = if *demand > supply { 10_000 * (*demand - supply) / *demand } else { 0 };
                *stall = (*stall * 9 + waiting as u32) / 10;
                let busy = (10_000 * (*demand).min(supply) / supply) as u32;
                readings.push(Reading { instance: member.instance, at_ns: self.now_ns, stall: *stall, busy });
            }
            let members: Vec<Member> = self.kernels.iter().map(|kernel| kernel.0).collect();
            if let Verdict::Move(proposal) = self.balancer.decide(self.now_ns, &members, &readings, self.pool)
            {
                match proposal.from {
                    From::Pool => self.pool -= 1,
                    From::Instance(from) => self.kernel(from).0.cpus -= 1,
                }
                self.kernel(proposal.to).0.cpus += 1;
                self.moves.push((self.now_ns, proposal));
            }
        }
        self
    }
}

#[test]
fn cpus_go_where_work_waits_until_it_waits_no_more_and_then_stay() {
    let mut machine = Machine::new(&[(WEB, 2), (DB, 6)], 0);
    machine.kernel(WEB).1 = 390;
    machine.kernel(DB).1 = 80;
    machine.run(300);
    assert_eq!((machine.kernel(WEB).0.cpus, machine.kernel(DB).0.cpus), (4, 4));
    let moved = machine.moves.len();
    machine.run(3_600);
    assert_eq!(machine.moves.len(), moved, "a constant load is balanced once");
}

#[test]
fn a_free_cpu_goes_before_anybody_gives_one() {
    let mut machine = Machine::new(&[(WEB, 1), (DB, 6)], 1);
    machine.kernel(WEB).1 = 190;
    machine.run(60);
    assert_eq!(machine.moves.len(), 1);
    assert_eq!(machine.moves[0].1.from, From::Pool);
}

#[test]
fn a_short_burst_moves_nothing() {
    let mut machine = Machine::new(&[(WEB, 2), (DB, 6)], 0);
    machine.run(30);
    machine.kernel(WEB).1 = 400;
    machine.run(3);
    machine.kernel(WEB).1 = 50;
    machine.run(60);
    assert!(machine.moves.is_empty(), "{:?}", machine.moves);
}

#[test]
fn nobody_gives_who_would_then_wait() {
    let mut machine = Machine::new(&[(WEB, 2), (DB, 2)], 0);
    machine.kernel(WEB).1 = 400;
    machine.kernel(DB).1 = 110;
    machine.run(120);
    assert!(machine.moves.is_empty(), "{:?}", machine.moves);
}

#[test]
fn limits_are_kept_whatever_the_pressure() {
    let mut machine = Machine::new(&[(WEB, 2), (DB, 6)], 0);
    machine.kernel(WEB).1 = 2_000;
    machine.kernel(DB).0.bounds.min = 4;
    machine.run(600);
    assert_eq!(machine.kernel(DB).0.cpus, 4);
    let mut machine = Machine::new(&[(WEB, 2), (DB, 6)], 0);
    machine.kernel(WEB).1 = 2_000;
    machine.kernel(WEB).0.bounds.max = 3;
    machine.run(600);
    assert_eq!(machine.kernel(WEB).0.cpus, 3);
}

#[test]
fn a_load_that_swings_from_one_to_the_other_is_followed_ever_more_slowly() {
    let mut machine = Machine::new(&[(WEB, 4), (DB, 4)], 0);
    for _ in 0..60 {
        machine.kernel(WEB).1 = 600;
        machine.kernel(DB).1 = 50;
        machine.run(60);
        machine.kernel(WEB).1 = 50;
        machine.kernel(DB).1 = 600;
        machine.run(60);
    }
    let half = machine.now_ns / 2;
    let early = machine.moves.iter().filter(|(at_ns, _)| *at_ns < half).count();
    let late = machine.moves.len() - early;
    assert!(late < early, "{early} moves in the first half, {late} in the second");
}

#[test]
fn a_kernel_without_fresh_readings_neither_gives_nor_gets() {
    let mut balancer = Balancer::default();
    let member = |instance, cpus| Member { instance, cpus, bounds: Bounds::new(1, 8), is_moving: false };
    let members = [member(WEB, 2), member(DB, 6)];
    for second in 0..60 {
        let stale = [
            Reading { instance: WEB, at_ns: 0, stall: 9_000, busy: 10_000 },
            Reading { instance: DB, at_ns: second * S, stall: 0, busy: 0 },
        ];
        let verdict = balancer.decide(second * S, &members, &stale, 0);
        assert!(!matches!(verdict, Verdict::Move(_)), "moved on stale readings at {second} s");
    }
}

#[test]
fn a_giver_that_says_no_is_asked_ever_more_rarely_and_another_one_meanwhile() {
    let cache = InstanceId(5);
    let mut machine = Machine::new(&[(WEB, 1), (DB, 4), (cache, 2)], 0);
    machine.kernel(WEB).1 = 5_000;
    let mut asked = Vec::new();
    for _ in 0..600 {
        let before = machine.moves.len();
        machine.run(1);
        let Some((at_ns, proposal)) = machine.moves.get(before).copied() else { continue };
        let From::Instance(from) = proposal.from else { panic!("{proposal:?}") };
        if from == DB {
            machine.kernel(DB).0.cpus += 1;
            machine.kernel(WEB).0.cpus -= 1;
        }
        machine.balancer.ended(at_ns, &proposal, from != DB);
        asked.push((at_ns / S, from));
    }
    assert_eq!(asked.iter().filter(|(_, from)| *from == cache).count(), 1, "it has one to give: {asked:?}");
    let refused: Vec<u64> = asked.iter().filter(|(_, from)| *from == DB).map(|(at, _)| *at).collect();
    let pauses: Vec<u64> = refused.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() > 2 && pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
}

#[test]
fn a_member_is_told_how_it_stands() {
    let mut machine = Machine::new(&[(WEB, 1), (DB, 4)], 0);
    machine.kernel(WEB).1 = 5_000;
    machine.run(5);
    let standing = machine.balancer.standing(machine.now_ns, WEB);
    assert!(standing.wants_ns.is_some_and(|ns| ns > 0) && standing.rests_ns == 0, "{standing:?}");
    assert_eq!(machine.balancer.standing(machine.now_ns, DB).gives_ns, Some(4 * S));
    machine.run(3);
    let (at_ns, proposal) = machine.moves[0];
    let why = proposal.why(|id| if id == WEB { "web".into() } else { "db".into() });
    assert!(why.starts_with("web waits for a CPU ") && why.contains("; db waits 0.00 %"), "{why}");
    let standing = machine.balancer.standing(at_ns, DB);
    assert_eq!((standing.rests_ns, standing.gives_ns), (15 * S, None));
}
