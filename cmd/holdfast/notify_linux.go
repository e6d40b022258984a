package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonic is the line that tells the time of CLOCK_MONOTONIC, which Go's own clocks do not show.
func monotonic() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return ""
	}
	return fmt.Sprintf("\nMONOTONIC_USEC=%d", t.Nano()/1000)
}
