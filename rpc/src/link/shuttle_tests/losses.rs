//! Calls that are dropped, streams that are dropped, links that end: at any moment. Everybody else goes on or hears of it.

use super::*;
use crate::sync::time;

const ANY_TIME: std::time::Duration = std::time::Duration::ZERO;

/// Tasks that call, read and write at both ends, and do not mind how it ends.
fn users(near: &Link, far: &Link) -> Vec<shuttle::future::JoinHandle<()>> {
    let mut users = Vec::new();
    for (link, number) in [(near, 1), (far, 2), (near, 3)] {
        let tasks = TasksClient::new(link.clone());
        users.push(spawn(async move {
            let sent = vec![number; 600];
            check_echo(&sent, tasks.echo_later(sent.clone()).await);
            check_echo(&sent, tasks.echo(sent.clone()).await);
        }));
    }
    let tasks = TasksClient::new(near.clone());
    users.push(spawn(async move {
        let (call, mut items) = tasks.produce(ITEMS);
        while let Ok(Some(item)) = items.recv().await {
            assert_eq!(item.len(), ITEM_BYTES);
        }
        let _ = call.await;
    }));
    let tasks = TasksClient::new(far.clone());
    users.push(spawn(async move {
        let (call, items) = tasks.consume();
        while items.send(vec![1; ITEM_BYTES]).await.is_ok() {}
        drop(items);
        let _ = call.await;
    }));
    users
}

async fn all_end(users: Vec<shuttle::future::JoinHandle<()>>, near: &Link, far: &Link) {
    for user in users {
        user.await.unwrap();
    }
    near.closed().await;
    far.closed().await;
}

#[test]
fn shuttle_a_link_that_is_closed_ends_for_everybody_at_both_ends() {
    explore(|| async {
        let (near, far, _line) = ends(2048).await;
        let users = users(&near, &far);
        some_turns().await;
        near.close("enough");
        all_end(users, &near, &far).await;
    });
}

#[test]
fn shuttle_a_link_that_both_ends_close_at_once_ends_for_everybody() {
    explore(|| async {
        let (near, far, _line) = ends(2048).await;
        let users = users(&near, &far);
        let closing = far.clone();
        let closer = spawn(async move {
            some_turns().await;
            closing.close("enough");
        });
        some_turns().await;
        near.close("enough");
        closer.await.unwrap();
        all_end(users, &near, &far).await;
    });
}

#[test]
fn shuttle_a_line_that_breaks_ends_the_link_for_everybody_at_both_ends() {
    explore(|| async {
        let (near, far, line) = ends(2048).await;
        let users = users(&near, &far);
        some_turns().await;
        line.cut();
        all_end(users, &near, &far).await;
    });
}

#[test]
fn shuttle_a_line_that_breaks_amid_the_handshake_ends_it_at_both_ends() {
    explore(|| async {
        let (line, near, far) = Line::new(64);
        let addr = Addr::new(Cid::LOCAL, Port(1));
        let messages = |end| Messages::framed(end, addr, addr, FRAME_BYTES);
        let (near, far) = (messages(near), messages(far));
        let near = spawn(async move { Link::connect(near, LinkConfig::new("near"), Router::new()).await });
        let far = spawn(async move { Link::accept(far, LinkConfig::new("far"), Router::new()).await });
        some_turns().await;
        line.cut();
        for link in [near, far] {
            if let Ok(link) = link.await.unwrap() {
                link.closed().await;
            }
        }
    });
}

#[test]
fn shuttle_a_link_whose_last_handle_is_dropped_ends_at_the_other_end() {
    explore(|| async {
        let (near, far, _line) = ends(2048).await;
        let tasks = TasksClient::new(near);
        let user = spawn(async move { assert_eq!(tasks.echo(vec![1]).await.unwrap(), [1]) });
        let tasks = TasksClient::new(far.clone());
        check_echo(&[2], tasks.echo_later(vec![2]).await);
        user.await.unwrap();
        far.closed().await;
    });
}

#[test]
fn shuttle_a_link_that_goes_away_answers_what_is_under_way_and_ends() {
    explore(|| async {
        let (near, far, _line) = ends(2048).await;
        let tasks = TasksClient::new(near.clone());
        let under_way = spawn(async move {
            let sent = vec![1; 600];
            check_echo(&sent, tasks.echo_later(sent.clone()).await);
        });
        let tasks = TasksClient::new(far.clone());
        let later = spawn(async move { check_echo(&[2], tasks.echo(vec![2]).await) });
        some_turns().await;
        far.goaway("enough");
        all_end(vec![under_way, later], &near, &far).await;
    });
}

#[test]
fn shuttle_a_link_that_has_gone_away_lets_go_of_a_line_that_is_silent() {
    explore(|| async {
        let (answer, waiting) = oneshot::channel();
        let server = Server { waiting: std::sync::Mutex::new(Some(waiting)), ..Server::default() };
        let (near, far, line) = try_ends(2048, server).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        let tasks = TasksClient::new(near.clone());
        let caller = spawn(async move { drop(tasks.wait().await) });
        far.ping().await.unwrap();
        far.goaway("enough");
        // The peer has heard of it, so the last answer is all that is missing.
        if far.ping().await.is_ok() {
            line.fall_silent();
        }
        drop(answer);
        line.far_end_gone().await;
        caller.abort();
        let _ = caller.await;
    });
}

#[test]
fn shuttle_a_call_that_is_dropped_at_any_moment_leaves_the_others_alone() {
    explore(|| async {
        let (near, _far, _line) = ends(FRAME_BYTES + 4).await;
        let droppers = [1, 2].map(|number| {
            let tasks = TasksClient::new(near.clone());
            spawn(async move {
                let sent = vec![number; 1100];
                if let Ok(got) = time::timeout(ANY_TIME, tasks.echo_later(sent.clone())).await {
                    assert_eq!(got.unwrap(), sent);
                }
            })
        });
        let tasks = TasksClient::new(near.clone());
        let stayer = spawn(async move { assert_eq!(tasks.echo(vec![3; 600]).await.unwrap(), [3; 600]) });
        for task in droppers {
            task.await.unwrap();
        }
        stayer.await.unwrap();
    });
}

#[test]
fn shuttle_streams_dropped_at_any_moment_end_at_the_other_end() {
    explore(|| async {
        let (near, _far, _line) = ends(4096).await;
        let tasks = TasksClient::new(near.clone());
        let reader = spawn(async move {
            let (call, mut items) = tasks.produce(ITEMS);
            let _ = time::timeout(ANY_TIME, async { while let Ok(Some(_)) = items.recv().await {} }).await;
            drop(items);
            // It has sent all of them, or was told to stop.
            assert!(call.await.unwrap() <= ITEMS);
        });
        let tasks = TasksClient::new(near.clone());
        let writer = spawn(async move {
            let (call, items) = tasks.consume();
            let _ = time::timeout(ANY_TIME, async { while items.send(vec![1; ITEM_BYTES]).await.is_ok() {} })
                .await;
            drop(items);
            call.await.unwrap();
        });
        reader.await.unwrap();
        writer.await.unwrap();
    });
}

#[test]
fn shuttle_a_handler_ends_with_its_call() {
    explore(|| async {
        let (server, started, ended) = hanging();
        let (near, far, _line) = try_ends(2048, server).await;
        let (near, _far) = (near.unwrap(), far.unwrap());
        let tasks = TasksClient::new(near.clone());
        let caller = spawn(async move { tasks.hang().no_deadline().await });
        started.await.unwrap();
        caller.abort();
        let _ = caller.await;
        assert!(ended.await.is_err());
    });
}

#[test]
fn shuttle_nothing_is_left_of_a_link_that_is_dropped_with_its_calls_at_any_moment() {
    explore(|| async {
        let (server, _started, ended) = hanging();
        let (near, far, _line) = try_ends(2048, server).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        let tasks = TasksClient::new(near);
        let caller = spawn(async move { drop(time::timeout(ANY_TIME, tasks.hang().no_deadline()).await) });
        some_turns().await;
        drop(far);
        caller.await.unwrap();
        // The service is gone, so the link that served it is.
        assert!(ended.await.is_err());
    });
}

/// A server that says when its handler that never answers has started, and has ended.
fn hanging() -> (Server, oneshot::Receiver<()>, oneshot::Receiver<()>) {
    let (starts, started) = oneshot::channel();
    let (ends, ended) = oneshot::channel();
    let hanging = std::sync::Mutex::new(Some((starts, ends)));
    (Server { hanging, ..Server::default() }, started, ended)
}
