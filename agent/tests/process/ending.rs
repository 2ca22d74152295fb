//! How the process ends.

use {
    crate::{
        agent::{Home, exec_component},
        aggregator::Aggregator,
        soon,
    },
    healthscope_shared::wire::{AgentMessage, close},
    rustix::process::Signal,
    std::{fs, path::Path, time::Duration},
};

/// Whether a process is there and not merely waiting to be buried.
fn is_alive(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

async fn written(path: &Path) -> String {
    let reading = async {
        loop {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    soon("a file", reading).await
}

async fn check_end(signal: Signal) {
    let aggregator = Aggregator::plain().await;
    let home = Home::new("");
    // A command with a child of its own, both deaf to a polite request.
    let (parent, child) = (home.path("parent"), home.path("child"));
    let script = format!(
        "trap '' TERM INT; (trap '' TERM INT; sh -c 'echo $PPID' > {child}; sleep 1000) & echo $$ > {parent}; wait",
        child = child.display(),
        parent = parent.display(),
    );
    home.write("config.yaml", &exec_component("web", &script));
    let agent = home.start(&aggregator.url());
    let mut session = aggregator.open().await;
    let processes = [written(&parent).await, written(&child).await];
    assert!(processes.iter().all(|pid| is_alive(pid)), "{processes:?}");

    agent.signal(signal);
    let (messages, frame) = session.closed().await;
    let Some(AgentMessage::Goodbye(goodbye)) = messages.last() else {
        panic!("{messages:?} do not end with a goodbye")
    };
    assert_eq!(goodbye.reason, "the agent is stopping");
    assert_eq!(u16::from(frame.code), close::NORMAL);
    drop(session);
    let (status, took) = agent.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    for pid in processes {
        assert!(!is_alive(&pid), "{pid} is left");
    }
    assert!(!home.socket().exists());
}

#[tokio::test]
async fn terminated_agent_says_goodbye_and_leaves_no_child() {
    check_end(Signal::TERM).await;
}

#[tokio::test]
async fn interrupted_agent_says_goodbye_and_leaves_no_child() {
    check_end(Signal::INT).await;
}

#[tokio::test]
async fn agent_without_an_aggregator_ends_as_well() {
    let home = Home::new(&exec_component("web", "sleep 1000"));
    let agent = home.start("ws://localhost:1");
    agent.logged("no session with the aggregator").await;
    let (status, took) = agent.terminated().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}
