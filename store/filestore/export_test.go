//go:build unix

package filestore

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// OpenStepped opens a store without a sweeper that calls step before each file-system call.
func OpenStepped(ctx context.Context, path string, c Config, before func(call, name string) error) (*Store, error) {
	return OpenIntercepted(ctx, path, c, func(call, name string, do func() error) error {
		if before == nil {
			return do()
		}
		if err := before(call, name); err != nil {
			return err
		}
		return do()
	})
}

// OpenIntercepted opens a store without a sweeper that lets step make each file-system call.
func OpenIntercepted(ctx context.Context, path string, c Config, step func(call, name string, do func() error) error) (*Store, error) {
	return open(ctx, path, c.withDefaults(), step)
}

// SweepOnce goes through the whole directory once.
func (s *Store) SweepOnce(ctx context.Context) (unreadable int, err error) {
	did, err := s.sweep(ctx, func(time.Duration, swept) {})
	return did.unreadable, err
}

// SweepRecord does for one record what a sweep does for each.
func (s *Store) SweepRecord(ctx context.Context, id driver.ID) error {
	_, err := s.sweepName(ctx, id.Hex())
	return storeError("sweep", err)
}

// DeleteInPlace is Delete on a full disk.
func (s *Store) DeleteInPlace(id driver.ID) error { return storeError("delete", s.deleteInPlace(id)) }

// SetChecksum makes b, a file that a test changed, a valid one.
func SetChecksum(id driver.ID, b []byte) {
	binary.BigEndian.PutUint32(b[4:], checksum(id, b, b[recordStart:]))
}

// WantLocal is what Open does when statfs gives a type.
func WantLocal(c Config, fsType uint32) error {
	s := &Store{config: c.withDefaults(), path: "/srv/sessions"}
	return s.wantLocal(fsType)
}

const BuildAge = buildAge
