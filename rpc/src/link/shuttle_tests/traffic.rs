//! Nobody dies here: everything is answered, all items arrive.

use super::*;

#[test]
fn shuttle_calls_of_several_tasks_at_both_ends_each_get_their_own_answer() {
    explore(|| async {
        let (near, far, _line) = ends(4096).await;
        let callers = [(&near, 1), (&near, 2), (&far, 3), (&near, 4), (&far, 5)].map(|(link, number)| {
            let tasks = TasksClient::new(link.clone());
            spawn(async move {
                for turn in 0..2 {
                    let sent = vec![number, turn];
                    assert_eq!(tasks.echo(sent.clone()).await.unwrap(), sent);
                    assert_eq!(tasks.echo_later(sent.clone()).await.unwrap(), sent);
                }
            })
        });
        for caller in callers {
            caller.await.unwrap();
        }
    });
}

#[test]
fn shuttle_a_crowd_of_callers_that_leave_sending_to_the_driver_is_answered() {
    explore(|| async {
        let (near, _far, _line) = ends(4096).await;
        let callers = [1, 2, 3, 4, 5, 6, 7].map(|number| {
            let tasks = TasksClient::new(near.clone());
            spawn(async move { assert_eq!(tasks.echo(vec![number]).await.unwrap(), [number]) })
        });
        for caller in callers {
            caller.await.unwrap();
        }
    });
}

#[test]
fn shuttle_a_caller_in_a_crowd_that_waits_for_ever_is_answered() {
    explore(|| async {
        let (near, far, _line) = ends(4096).await;
        let tasks = TasksClient::new(near.clone());
        let crowd = [1, 2, 3, 4].map(|_| {
            let tasks = tasks.clone();
            spawn(async move { tasks.hang().await })
        });
        // Once the peer serves them nothing is on its way that would wake the driver.
        while far.in_flight().1 < 4 {
            near.ping().await.unwrap();
        }
        assert_eq!(tasks.echo(vec![1]).await.unwrap(), [1]);
        for caller in crowd {
            caller.abort();
            let _ = caller.await;
        }
    });
}

#[test]
fn shuttle_long_messages_pass_through_a_line_with_room_for_one_frame() {
    explore(|| async {
        let (near, far, _line) = ends(FRAME_BYTES + 4).await;
        let callers = [(&near, 1), (&far, 2), (&near, 3)].map(|(link, number)| {
            let tasks = TasksClient::new(link.clone());
            spawn(async move {
                let sent = vec![number; 1500];
                assert_eq!(tasks.echo(sent.clone()).await.unwrap(), sent);
                assert_eq!(tasks.echo(vec![number]).await.unwrap(), [number]);
            })
        });
        for caller in callers {
            caller.await.unwrap();
        }
    });
}

#[test]
fn shuttle_items_beyond_the_window_wait_for_credit_and_arrive_beside_calls() {
    explore(|| async {
        let (near, _far, _line) = ends(16 * 1024).await;
        let tasks = TasksClient::new(near.clone());
        let reader = spawn(async move {
            let (call, mut items) = tasks.produce(ITEMS);
            for item in 0..ITEMS {
                assert_eq!(items.recv().await.unwrap(), Some(vec![item as u8; ITEM_BYTES]));
            }
            assert_eq!(items.recv().await.unwrap(), None);
            assert_eq!(call.await.unwrap(), ITEMS);
        });
        let tasks = TasksClient::new(near.clone());
        let writer = spawn(async move {
            let (call, items) = tasks.consume();
            for item in 0..ITEMS {
                items.send(vec![item as u8; ITEM_BYTES]).await.unwrap();
            }
            drop(items);
            assert_eq!(call.await.unwrap(), u64::from(ITEMS) * ITEM_BYTES as u64);
        });
        let tasks = TasksClient::new(near.clone());
        let caller = spawn(async move { assert_eq!(tasks.echo_later(vec![9]).await.unwrap(), [9]) });
        for task in [reader, writer, caller] {
            task.await.unwrap();
        }
    });
}

#[test]
fn shuttle_a_ping_is_answered_by_whoever_takes_it() {
    explore(|| async {
        let (near, far, _line) = ends(4096).await;
        let tasks = TasksClient::new(near.clone());
        // They look for their answers once or twice, and then wait for ever.
        let callers = [1, 2, 3].map(|_| {
            let tasks = tasks.clone();
            spawn(async move { tasks.hang().await })
        });
        far.ping().await.unwrap();
        for caller in callers {
            caller.abort();
            let _ = caller.await;
        }
    });
}

#[test]
fn shuttle_pings_are_answered_while_others_call() {
    explore(|| async {
        let (near, far, _line) = ends(FRAME_BYTES + 4).await;
        let pinging = near.clone();
        let pinger = spawn(async move { pinging.ping().await.map(drop).unwrap() });
        let tasks = TasksClient::new(far.clone());
        let caller = spawn(async move { assert_eq!(tasks.echo(vec![1; 900]).await.unwrap(), [1; 900]) });
        far.ping().await.unwrap();
        pinger.await.unwrap();
        caller.await.unwrap();
    });
}
