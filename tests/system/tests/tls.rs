//! A decision log whose server is reached by TLS.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use unanimous_lab::{Cluster, Options, Program, postgres, scratch};

use crate::process::runs;
use crate::support::coordinator::serve;
use crate::support::{Coordinator, Log, SOON};

/// A CA, and what it signed for 127.0.0.1.
struct Certificates(TempDir);

impl Certificates {
    async fn make() -> Self {
        let made = Self(scratch::directory("certificates").expect("a directory can be made"));
        let new_key = "req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
        for arguments in [
            format!("{new_key} -keyout ca.key -out ca.crt -subj /CN=ca"),
            format!(
                "{new_key} -keyout server.key -out server.crt -subj /CN=server -CA ca.crt -CAkey ca.key \
                 -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE"
            ),
        ] {
            let mut openssl = Program::new("openssl", "openssl")
                .args(arguments.split(' '))
                .directory(made.0.path())
                .start()
                .expect("openssl is installed, as it is wherever Debian's Postgres is");
            let status = openssl.wait_exit(SOON).await.expect("openssl ends");
            assert!(status.success(), "openssl {arguments}: {status}");
        }
        made
    }

    fn ca(&self) -> String {
        self.0.path().join("ca.crt").display().to_string()
    }

    /// Gives the server its certificate; its key is for it alone, or it is refused.
    fn hand_over(&self, data: &Path) {
        let owner = std::fs::metadata(data).expect("there is a data directory");
        for name in ["server.crt", "server.key"] {
            let there = data.join(name);
            std::fs::copy(self.0.path().join(name), &there).expect("it can be copied");
            std::os::unix::fs::chown(&there, Some(owner.uid()), Some(owner.gid()))
                .expect("it can be given away");
            std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o600))
                .expect("it can be closed");
        }
    }
}

/// A server with TLS, and nothing but TLS.
async fn server(certificates: &Certificates) -> Cluster {
    let mut server = Cluster::start(&Options::default().name("log"))
        .await
        .expect("a server starts");
    certificates.hand_over(&server.data_directory());
    let admin = postgres::connect(&server.admin_url()).await;
    let admin = admin.expect("the server answers");
    admin
        .execute("ALTER SYSTEM SET ssl = on", &[])
        .await
        .expect("it is a superuser");
    drop(admin);
    server.restart().await.expect("the server starts again");
    server
}

#[tokio::test]
async fn a_log_s_server_is_trusted_by_its_certificate_and_by_nothing_less() {
    let (certificates, others) = tokio::join!(Certificates::make(), Certificates::make());
    let server = server(&certificates).await;
    let log = server.create_database("log").await;
    let log = log.expect("a database can be made");
    let with = |parameters: String| Log::Postgres(format!("{log}?{parameters}"));
    for trusted in [
        format!("sslmode=verify-full&sslrootcert={}", certificates.ca()),
        format!("sslmode=verify-ca&sslrootcert={}", certificates.ca()),
        "sslmode=require".to_owned(),
    ] {
        let trusted = std::sync::Arc::new(with(trusted));
        let coordinator = Coordinator::start_beside(&trusted, &[], |program| program).await;
        coordinator.begin(&json!({"commit": true})).await.is(200);
        let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                         WHERE application_name = 'unanimous'";
        let admin = postgres::connect(&server.admin_url()).await;
        let row = admin.expect("the server answers");
        let row = row.query_one(encrypted, &[]).await;
        let all: bool = row.expect("its connections can be seen").get(0);
        assert!(all, "{trusted:?}: a connection is not encrypted");
    }
    for (untrusted, says) in [
        (
            with(format!("sslmode=verify-full&sslrootcert={}", others.ca())),
            "sslrootcert",
        ),
        (with("sslmode=verify-full".to_owned()), "sslrootcert"),
        (
            // The certificate is for the address, and for no name.
            Log::Postgres(format!(
                "{}?sslmode=verify-full&sslrootcert={}",
                log.replace("127.0.0.1", "localhost"),
                certificates.ca()
            )),
            "URL's host",
        ),
    ] {
        let (succeeded, output) = runs(serve(&untrusted)).await;
        assert!(!succeeded && output.contains(says), "{output}");
        assert!(!output.contains("ready listen="), "{output}");
    }
}

#[tokio::test]
async fn a_log_that_is_to_be_reached_by_tls_is_not_reached_without() {
    let there = unanimous_lab::testing::fresh_database(1).await;
    let there = there.expect("a database can be made");
    let plain = Log::Postgres(format!("{there}?sslmode=require"));
    let (succeeded, output) = runs(serve(&plain)).await;
    assert!(!succeeded && output.contains("TLS"), "{output}");
}
