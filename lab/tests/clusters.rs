use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::TcpListener;
use tokio::time::timeout;
use unanimous_lab::postgres::connect;
use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Options, Stop, testing};

/// Long enough that a server which can answer would have.
const SILENCE: Duration = Duration::from_millis(500);
const SECONDS: Duration = Duration::from_secs(10);

async fn number(url: &str) -> anyhow::Result<i64> {
    let row = connect(url)
        .await?
        .query_one("SELECT n FROM kept", &[])
        .await?;
    Ok(row.get(0))
}

#[tokio::test]
async fn a_killed_cluster_restarts_on_its_port_with_its_data() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    let url = cluster.create_database("kept").await?;
    let client = connect(&url).await?;
    client
        .batch_execute("CREATE TABLE kept AS SELECT 7::bigint AS n")
        .await?;
    client
        .batch_execute("BEGIN; UPDATE kept SET n = 8; PREPARE TRANSACTION 'ours'")
        .await?;
    client
        .batch_execute("BEGIN; INSERT INTO kept VALUES (9)")
        .await?;

    cluster.kill();
    ensure!(!cluster.is_running());
    until("the client notices", SECONDS, async || client.is_closed()).await?;
    ensure!(
        connect(&url).await.is_err(),
        "nobody listens while it is dead"
    );

    cluster.restart().await?;
    assert_eq!(number(&url).await?, 7);
    connect(&url)
        .await?
        .batch_execute("COMMIT PREPARED 'ours'")
        .await?;
    assert_eq!(number(&url).await?, 8);
    Ok(())
}

#[tokio::test]
async fn a_restart_waits_until_its_port_is_free_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    cluster.kill();
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, cluster.port())).await?;
    let leaves = tokio::spawn(async move {
        // The restart asks its port whether it is ready, and reaches the other one. Often enough
        // for a server to have tried the port meanwhile.
        for _ in 0..30 {
            other.accept().await.ok();
        }
    });
    cluster.restart().await?;
    leaves.await?;
    ensure!(
        cluster.output()?.contains("Address already in use"),
        "the port was never taken"
    );
    Ok(())
}

#[tokio::test]
async fn a_cluster_stops_in_good_order_or_at_once_and_comes_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    for stop in [Stop::Fast, Stop::Immediate] {
        // A client that stays does not hold it up.
        let _client = connect(&cluster.admin_url()).await?;
        cluster.stop(stop).await?;
        ensure!(!cluster.is_running());
        cluster.restart().await?;
    }
    let recoveries = cluster
        .output()?
        .matches("was not properly shut down")
        .count();
    assert_eq!(recoveries, 1, "only the immediate stop needs a recovery");
    Ok(())
}

#[tokio::test]
async fn a_paused_cluster_answers_nobody_until_it_is_resumed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    let client = connect(&cluster.admin_url()).await?;

    cluster.pause();
    let mut answer = Box::pin(client.query_one("SELECT 1", &[]));
    ensure!(
        timeout(SILENCE, &mut answer).await.is_err(),
        "an open connection stays silent"
    );
    let another = timeout(SILENCE, connect(&cluster.admin_url())).await;
    ensure!(another.is_err(), "a new one is not answered");

    cluster.resume();
    timeout(SECONDS, answer)
        .await
        .context("resumed, but silent")??;
    Ok(())
}

#[tokio::test]
async fn a_dropped_cluster_leaves_no_server_and_no_files() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&Options::default()).await?;
    let (url, data) = (cluster.admin_url(), cluster.data_directory());
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid"))?;
    let segment = pid_file.lines().nth(6).context("no shared memory")?;
    let (key, _) = segment.trim().split_once(' ').context("no key")?;
    // Killed, it could not remove its shared memory itself.
    cluster.kill();
    drop(cluster);

    ensure!(connect(&url).await.is_err());
    ensure!(!data.exists());
    let segments = std::fs::read_to_string("/proc/sysvipc/shm")?;
    ensure!(
        !segments.split_ascii_whitespace().any(|word| word == key),
        "{segments}"
    );
    Ok(())
}

#[tokio::test]
async fn each_test_gets_a_database_of_its_own_on_the_cluster_it_asks_for() -> anyhow::Result<()> {
    let urls = [
        testing::fresh_database(1).await?,
        testing::fresh_database(1).await?,
        testing::fresh_database(2).await?,
    ];
    for url in &urls {
        connect(url)
            .await?
            .batch_execute("CREATE TABLE kept AS SELECT 1::bigint AS n")
            .await?;
    }
    let server = |url: &str| url.rsplit_once('/').map(|(server, _)| server.to_owned());
    assert_eq!(server(&urls[0]), server(&urls[1]));
    assert_ne!(server(&urls[0]), server(&urls[2]));
    Ok(())
}
