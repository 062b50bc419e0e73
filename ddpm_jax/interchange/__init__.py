"""Import and export of weights: conversion between the files of other code and our names."""
