module github.com/holdfast-sessions/holdfast/internal/nfstest

go 1.26.0

require (
	github.com/google/go-cmp v0.7.0
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/holdfast-sessions/holdfast v0.0.0
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.49.0
)

require github.com/holdfast-sessions/holdfast v0.0.0

replace github.com/holdfast-sessions/holdfast => ../../
