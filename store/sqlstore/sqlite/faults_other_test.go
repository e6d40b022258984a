//go:build !linux

package sqlite_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
)

// outage needs locks that only Linux has.
func outage(*testing.T, string) func(testing.TB, driver.Store) (end func()) { return nil }
