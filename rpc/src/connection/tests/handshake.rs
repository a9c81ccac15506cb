//! HELLO and PROOF, with the right peer and with wrong ones.

use super::sim::{End, SECOND, Sim, config};
use crate::connection::{Event, Proof, Side};
use crate::error::LinkError;

fn secret(a: [u8; 32], b: [u8; 32]) -> Sim {
    let mut ours = config(Side::Connector);
    ours.proof = Proof::Secret(a);
    let mut theirs = config(Side::Acceptor);
    theirs.proof = Proof::Secret(b);
    Sim::new(ours, theirs)
}

fn refused(sim: &Sim) -> (String, String) {
    let why = |error: Option<&LinkError>| error.expect("the link stayed open").to_string();
    (why(sim.a.closed()), why(sim.b.closed()))
}

#[test]
fn both_sides_learn_who_is_there() {
    let sim = Sim::established();
    let peer = sim.a.peer().unwrap();
    assert_eq!((&*peer.role, peer.cid.0, peer.authenticated, peer.version), ("Acceptor", 3, false, 1));
    assert_eq!(sim.b.peer().unwrap().role, "Connector");
}

#[test]
fn both_sides_prove_the_secret() {
    let mut sim = secret([5; 32], [5; 32]);
    sim.run();
    assert!(sim.a.peer().unwrap().authenticated && sim.b.peer().unwrap().authenticated);
}

#[test]
fn wrong_secret_is_refused_and_both_sides_can_say_why() {
    let mut sim = secret([5; 32], [6; 32]);
    sim.run();
    let (a, b) = refused(&sim);
    assert!(a.contains("secret") && b.contains("secret"), "{a} / {b}");
    assert!(sim.a.peer().is_none() && sim.b.peer().is_none());
}

#[test]
fn side_without_secret_is_refused_by_one_that_requires_it() {
    let mut ours = config(Side::Connector);
    ours.proof = Proof::Secret([1; 32]);
    for (a, b) in [
        (ours.clone(), config(Side::Acceptor)),
        (config(Side::Connector), {
            let mut theirs = config(Side::Acceptor);
            theirs.proof = Proof::Chosen;
            theirs
        }),
    ] {
        let mut sim = Sim::new(a, b);
        sim.run();
        let (a, b) = refused(&sim);
        assert!(a.contains("secret") || b.contains("secret"), "{a} / {b}");
    }
}

#[test]
fn chosen_secret_depends_on_who_claims_to_be_there() {
    let mut ours = config(Side::Connector);
    ours.proof = Proof::Secret([7; 32]);
    let mut theirs = config(Side::Acceptor);
    theirs.proof = Proof::Chosen;
    let mut sim = Sim::new(ours, theirs);
    sim.transmit(End::A);
    sim.deliver(End::B);
    let told = sim.told_b();
    let [Event::PeerHello(peer)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((peer.cid.0, peer.incarnation.0, peer.authenticated), (2, [1; 16], false));
    assert!(sim.a.peer().is_none() && sim.b.peer().is_none());
}

#[test]
fn chosen_secret_completes_the_handshake() {
    let mut ours = config(Side::Connector);
    ours.proof = Proof::Secret([7; 32]);
    let mut theirs = config(Side::Acceptor);
    theirs.proof = Proof::Chosen;
    let mut sim = Sim::new(ours, theirs);
    sim.transmit(End::A);
    sim.deliver(End::B);
    sim.b.authenticate([7; 32]);
    sim.run();
    assert!(sim.a.peer().is_some() && sim.b.peer().is_some());
}

#[test]
fn proof_sent_back_to_its_prover_is_refused() {
    // A mirror that answers with the connector's own HELLO and PROOF.
    let mut sim = secret([5; 32], [5; 32]);
    sim.transmit(End::A);
    let hello = sim.to_b[0].clone();
    sim.to_a.push_back(hello);
    sim.deliver(End::A);
    assert!(matches!(sim.a.closed(), Some(LinkError::Violation(why)) if why.contains("connected to itself")));
}

#[test]
fn mirror_that_changes_the_side_is_refused_too() {
    let mut sim = secret([5; 32], [5; 32]);
    sim.transmit(End::A);
    let mut hello = sim.to_b[0].clone();
    hello[8 + 8] = Side::Acceptor as u8;
    sim.to_a.push_back(hello.clone());
    sim.deliver(End::A);
    assert!(matches!(sim.a.closed(), Some(LinkError::NotAuthenticated(_))), "own nonce accepted");

    // Even with another nonce, A's own proof is not one for the other side.
    let mut sim = secret([5; 32], [5; 32]);
    sim.transmit(End::A);
    hello[8 + 40] ^= 1;
    sim.to_a.push_back(hello);
    sim.deliver(End::A);
    sim.transmit(End::A);
    let proof = sim.to_b.pop_back().unwrap();
    sim.to_a.push_back(proof);
    sim.deliver(End::A);
    assert!(matches!(sim.a.closed(), Some(LinkError::NotAuthenticated(_))), "own proof accepted");
}

#[test]
fn replayed_handshake_is_refused() {
    // Record what A says in a good handshake, then play it to a B with another nonce.
    let mut good = secret([5; 32], [5; 32]);
    let mut said = Vec::new();
    for _ in 0..4 {
        while good.transmit(End::A) {
            said.push(good.to_b.back().unwrap().clone());
        }
        good.transmit(End::B);
        while good.deliver(End::A) | good.deliver(End::B) {}
    }
    assert!(good.b.peer().is_some());
    let mut theirs = config(Side::Acceptor);
    theirs.proof = Proof::Secret([5; 32]);
    theirs.nonce = [99; 32];
    let mut sim = Sim::new(config(Side::Connector), theirs);
    sim.to_b.extend(said);
    while sim.deliver(End::B) {}
    assert!(matches!(sim.b.closed(), Some(LinkError::NotAuthenticated(_))), "{:?}", sim.b.closed());
}

#[test]
fn peer_of_other_versions_is_refused_by_name() {
    let mut sim = Sim::established_hello(|hello| {
        hello[8 + 4..8 + 8].copy_from_slice(&[2, 0, 9, 0]);
    });
    sim.deliver(End::B);
    let why = sim.b.closed().unwrap().to_string();
    assert!(why.contains("versions 2 to 9") && why.contains("1 to 1"), "{why}");
    sim.run();
    assert!(matches!(sim.a.closed(), Some(LinkError::Incompatible(_))));
}

#[test]
fn unknown_required_feature_is_refused_and_unknown_optional_one_is_not() {
    let mut sim = Sim::established_hello(|hello| hello[8 + 16] = 1);
    sim.run();
    assert!(sim.b.peer().is_some());
    let mut sim = Sim::established_hello(|hello| hello[8 + 23] = 1);
    sim.run();
    assert!(matches!(sim.b.closed(), Some(LinkError::Incompatible(_))));
}

#[test]
fn silent_peer_fails_the_handshake() {
    let mut sim = Sim::new(config(Side::Connector), config(Side::Acceptor));
    assert_eq!(sim.a.poll_timeout(), Some(5 * SECOND));
    sim.pass(5 * SECOND);
    assert!(matches!(sim.a.closed(), Some(LinkError::Silent { .. })));
}

#[test]
fn calls_before_the_handshake_are_refused() {
    let mut sim = Sim::new(config(Side::Connector), config(Side::Acceptor));
    let refused = sim.a.open(0, &super::sim::UNARY, None, &[], b"x"[..].into()).unwrap_err();
    assert_eq!(refused.outcome(), crate::Outcome::NotStarted);
    sim.to_b.push_back(vec![11, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    sim.deliver(End::B);
    assert!(matches!(sim.b.closed(), Some(LinkError::Violation(_))));
}

impl Sim {
    /// A's HELLO on its wire, changed.
    fn established_hello(change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut sim = Self::new(config(Side::Connector), config(Side::Acceptor));
        sim.transmit(End::A);
        change(&mut sim.to_b[0]);
        sim
    }
}
