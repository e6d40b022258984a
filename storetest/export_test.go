package storetest

import (
	"context"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Source is where RunCase gets stores from; only Open is needed.
type Source struct {
	Open   func() driver.Store
	Peer   func() driver.Store
	Reopen func(driver.Store) driver.Store
	Outage func() (end func())
}

// RunCase runs one case without package testing.
func RunCase(ctx context.Context, c Case, s Source) Result {
	src := source{open: func(*T) driver.Store { return s.Open() }}
	if s.Peer != nil {
		src.peer = func(*T, driver.Store) driver.Store { return s.Peer() }
	}
	if s.Reopen != nil {
		src.reopen = func(_ *T, old driver.Store) driver.Store { return s.Reopen(old) }
	}
	if s.Outage != nil {
		src.outage = func(*T, driver.Store) func() { return s.Outage() }
	}
	return runCase(ctx, c, src)
}
