//go:build !linux

package testserver

import "testing"

// Disk is a small file system of its own.
type Disk struct {
	// Dir is where it is mounted.
	Dir string
}

// SmallDisk mounts a file system of so many bytes. It does so on Linux only.
func SmallDisk(t testing.TB, _, _ string) *Disk {
	t.Skipf("NOT RUN: %s needs Linux", t.Name())
	return nil
}

// Fill takes all the room that is left.
func (d *Disk) Fill() {}

// Free gives back what Fill has taken.
func (d *Disk) Free() {}
