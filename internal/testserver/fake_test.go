package testserver_test

import (
	"fmt"
	"runtime"
	"testing"
)

// fakeTB notes how a test was ended instead of ending this one.
type fakeTB struct {
	testing.TB
	message string
	fatal   bool
}

func (f *fakeTB) Skip(args ...any)  { f.message = fmt.Sprint(args...); runtime.Goexit() }
func (f *fakeTB) Fatal(args ...any) { f.message, f.fatal = fmt.Sprint(args...), true; runtime.Goexit() }
