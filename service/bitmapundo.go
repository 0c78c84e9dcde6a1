package service

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/extentd/extentd/storage"
)

// undoPrefix begins the names of bitmaps that keep what others were, see
// [Service.ChangeBitmaps].
const undoPrefix = "extentd-undo-"

// prepare makes sure that the changes can be made, and finds out how they are
// undone. Nobody writes meanwhile.
func (i *changedImage) prepare(ctx context.Context) error {
	before, err := i.h.BitmapDirectory(ctx)
	if err != nil {
		return err
	}
	after := slices.Clone(before)
	var touched, lost []string // lost: what is in them may be something else afterwards
	for n := range i.changes {
		c := &i.changes[n]
		if after, err = imagine(after, c); err != nil {
			return &BitmapChangeError{Index: i.indices[n], Err: i.h.named(err)}
		}
		touched = add(touched, c.Name)
		switch c.Kind {
		case storage.BitmapDelete, storage.BitmapClear, storage.BitmapMerge:
			lost = add(lost, c.Name)
		case storage.BitmapCreate, storage.BitmapEnable, storage.BitmapDisable:
		}
	}
	var first []storage.BitmapChange
	for _, name := range touched {
		keep := ""
		b := findBitmap(before, name)
		if b >= 0 && !before[b].Inconsistent && slices.Contains(lost, name) {
			keep = undoPrefix + rand.Text()
			i.copies = append(i.copies, keep)
			first = append(first,
				storage.BitmapChange{Kind: storage.BitmapCreate, Name: keep, Granularity: before[b].Granularity},
				storage.BitmapChange{Kind: storage.BitmapMerge, Name: keep, From: []string{name}})
		}
		i.undoOne(name, keep, before, after)
	}
	i.changes = append(first, i.changes...)
	return nil
}

// undoOne adds what makes a bitmap what it was, with its copy, if there is one.
func (i *changedImage) undoOne(name, keep string, before, after []storage.BitmapInfo) {
	was, is := findBitmap(before, name), findBitmap(after, name)
	step := func(kind storage.BitmapChangeKind) {
		i.undo = append(i.undo, storage.BitmapChange{Kind: kind, Name: name})
	}
	if is >= 0 && (was < 0 || keep != "") {
		step(storage.BitmapDelete)
	}
	switch {
	case was < 0 || before[was].Inconsistent: // what an inconsistent one said was lost already
		return
	case keep != "":
		i.undo = append(i.undo,
			storage.BitmapChange{Kind: storage.BitmapCreate, Name: name, Granularity: before[was].Granularity},
			storage.BitmapChange{Kind: storage.BitmapMerge, Name: name, From: []string{keep}},
			storage.BitmapChange{Kind: storage.BitmapDelete, Name: keep})
	}
	if before[was].Enabled {
		step(storage.BitmapEnable)
	} else {
		step(storage.BitmapDisable)
	}
}

// keepNothing spares the copies: nothing comes after this image that could fail.
func (i *changedImage) keepNothing() {
	i.changes = i.changes[2*len(i.copies):]
	i.copies = nil
}

// revert undoes the changes.
func (i *changedImage) revert(ctx context.Context) error {
	err := i.keeper.ChangeBitmaps(ctx, i.undo)
	if err == nil {
		return nil
	}
	i.h.Report(err)
	return fmt.Errorf("image %q: the change of its bitmaps could not be undone: %w", i.h.name, err)
}

// forget removes the copies. What was asked for has been done already.
func (i *changedImage) forget(ctx context.Context) {
	if len(i.copies) == 0 {
		return
	}
	var changes []storage.BitmapChange
	for _, name := range i.copies {
		changes = append(changes, storage.BitmapChange{Kind: storage.BitmapDelete, Name: name})
	}
	err := i.keeper.ChangeBitmaps(ctx, changes)
	i.h.Report(err)
	i.h.s.report(i.h.name, err)
}

// imagine is what a change makes of a directory, or why it cannot be.
func imagine(all []storage.BitmapInfo, c *storage.BitmapChange) ([]storage.BitmapInfo, error) {
	n := findBitmap(all, c.Name)
	if c.Kind == storage.BitmapCreate {
		if n >= 0 {
			return nil, fmt.Errorf("bitmap %q: %w", c.Name, storage.ErrExists)
		}
		return append(all, storage.BitmapInfo{Name: c.Name, Enabled: c.Enabled}), nil
	}
	for _, name := range append([]string{c.Name}, c.From...) {
		switch k := findBitmap(all, name); {
		case k < 0:
			return nil, noBitmap(name)
		case all[k].Inconsistent && c.Kind != storage.BitmapDelete:
			return nil, fmt.Errorf("bitmap %q: %w: it is inconsistent, and can only be deleted", name, storage.ErrConflict)
		}
	}
	switch c.Kind {
	case storage.BitmapDelete:
		return slices.Delete(all, n, n+1), nil
	case storage.BitmapEnable, storage.BitmapDisable:
		all[n].Enabled = c.Kind == storage.BitmapEnable
	case storage.BitmapCreate, storage.BitmapClear, storage.BitmapMerge:
	}
	return all, nil
}

// add adds a text, unless it is there already.
func add(all []string, text string) []string {
	if slices.Contains(all, text) {
		return all
	}
	return append(all, text)
}
