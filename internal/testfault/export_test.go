package testfault

import (
	"testing"
	"time"
)

// Each yields the outages of a target.
func Each(target Target, f func(name string, run func(testing.TB))) {
	for _, o := range outages(target) {
		f(o.name, func(t testing.TB) { target.run(t, o) })
	}
}

// SetTimes changes how long a call may be late, how long a load may take, and what a store holds to be given back.
func SetTimes(late, wait, poll time.Duration) (restore func()) {
	l, w, p := slack, waitTimeout, pollTimeout
	slack, waitTimeout, pollTimeout = late, wait, poll
	return func() { slack, waitTimeout, pollTimeout = l, w, p }
}
