//! The record on S3: a server that speaks S3's protocol on loopback, and everything the archive does with a store.

use hyper::server::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use weir_archive::sweep::Sweep;
use weir_archive::{Archive, Sizes, Store, choose, compact, verify};

use super::tests::{World, archive_up_to, block_on, check};

/// A server over an empty bucket called `record`, and the variables that lead to it.
pub(crate) async fn server(dir: &std::path::Path) -> Vec<(String, String)> {
    std::fs::create_dir(dir.join("record")).unwrap();
    let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
    service.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let _ = Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    let variables = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_access_key_id", "key"),
        ("aws_secret_access_key", "secret"),
        ("aws_region", "us-east-1"),
    ];
    variables.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
}

#[test]
fn the_record_on_s3_is_the_books_too() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let variables = server(dir.path()).await;
        let open = || Store::open_with("s3://record/weir", variables.clone()).unwrap();
        let archive = Archive::open(open()).await.unwrap();
        let mut world = World::new(5);
        for round in 0..4 {
            let frames = world.frames(&[(0, 1, 1, 0), (1, 0, 1, 1), (2, 2, 900, 0), (round, 3, 1, 1)]);
            world.chain(Vec::new(), frames);
            archive_up_to(&world, &archive, u64::MAX).await.unwrap();
            check(&world, &archive, world.tick).await;
        }
        let sizes = Sizes { fresh_files_max: 2, ..Sizes::default() };
        while let Some(job) = choose(&archive.catalog(), &sizes, world.tick) {
            compact(&archive, &job, &sizes, world.tick).await.unwrap();
        }
        check(&world, &archive, world.tick).await;
        let mut sweep = Sweep::new(archive.clone(), 1_000);
        assert!(sweep.run(world.tick).await.unwrap().waiting > 0);
        assert!(sweep.run(world.tick + 1_000).await.unwrap().removed > 0);
        check(&world, &archive, world.tick).await;
        // Another process, and a manifest that two would create: the second one is fenced, not the first one overwritten.
        let other = Archive::open(open()).await.unwrap();
        assert_eq!(other.catalog(), archive.catalog());
        let verified = verify(open(), None, &mut |_| ()).await.unwrap();
        assert!(verified.faults.is_empty(), "{:?}", verified.faults);
        let frames = world.frames(&[(0, 1, 1, 0)]);
        world.chain(Vec::new(), frames);
        let (one, two) = tokio::join!(archive_up_to(&world, &archive, u64::MAX), archive_up_to(&world, &other, u64::MAX));
        assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
        check(&world, &archive, world.tick).await;
        check(&world, &other, world.tick).await;
    });
}
