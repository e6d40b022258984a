// Package nfstest simulates NFS: one server in memory, and clients that are mounted by FUSE, each with the caches of a machine
// of its own. Tests use them by ordinary calls of package os:
//
//	server := nfstest.Start(t)
//	a, b := server.Mount(t, nfstest.ClientOptions{}), server.Mount(t, nfstest.ClientOptions{})
//	a.Inject(nfstest.Fault{Kind: nfstest.LostAnswer, Ops: []nfstest.Op{nfstest.Rename}})
//	err := os.Rename(filepath.Join(a.Dir(), "f"), filepath.Join(a.Dir(), "g")) // ENOENT, although it was done
//
// TestMain must call [Main] first: server and mounts live in a child process, since a process that waits for its own file system
// can wait for ever. The child ends with the test process, however that ends, and leaves nothing mounted.
//
// # What is simulated
//
// The behaviour of the Linux client (fs/nfs) with the default options of nfs(5), as far as programs can tell:
//
//   - Attributes are believed for acregmin to acregmax, or acdirmin to acdirmax. A client's clock goes on by Advance.
//   - Names, present and absent, are believed as long as the directory has not changed, as far as its attributes tell.
//   - Close-to-open: who opens a file or directory by its name asks the server for its attributes, and drops what is outdated.
//     What a program has open already, and opens again as ".", is not looked at.
//   - Data is cached until the file has changed, and written when it is closed or synced; that is when errors are told.
//   - A file that its client removes or replaces while it is open is renamed to .nfsXXXX, by its name, until its last close.
//   - A handle whose file is gone is ESTALE. Locks are ENOLCK.
//   - A request that gets no answer is sent again, and executed again: the server has no cache of replies.
//   - A list of a directory that takes several requests is not a snapshot.
//
// # What is not
//
// RPC, delegations, locks and open states of NFSv4, access control, memory-mapped files, and quotas, other than by
// faults. Attributes that a client refreshes by the way are those of the simulated requests; a real client
// may send more of them, and so see changes sooner, never later. The server executes a request at one moment, while one on a
// real file system may do things one by one.
package nfstest
